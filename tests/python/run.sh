#!/bin/sh
# Runs the tests of the Python package: run.sh PYTHON ENVIRONMENT. Debian has PyTorch but no safetensors; that comes into
# an environment of its own, if it can be fetched. What is not there is skipped, and the reasons are listed.
set -eu
python=$1
if ! "$python" -c "import safetensors" 2>/dev/null; then
    [ -x "$2/bin/python" ] || "$python" -m venv --system-site-packages "$2"
    if "$2/bin/python" -m pip install -q --disable-pip-version-check safetensors; then python=$2/bin/python; fi
fi
cd "$(dirname "$0")"
exec "$python" -m pytest -q -rs -p no:cacheprovider --ignore=test_recipe.py .
