"""The wheel: built from this tree around a libhla that is there, installed where no PyTorch is, and used there."""

import os
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT

pytestmark = pytest.mark.skipif("HLA_LIBRARY" not in os.environ, reason="HLA_LIBRARY names no library to carry")
ENVIRONMENT = {key: value for key, value in os.environ.items() if key not in ("HLA_LIBRARY", "PYTHONPATH")}


def run(*command):
    done = subprocess.run(command, env=ENVIRONMENT, cwd="/", text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """A Python of its own, with what builds the wheel and what tests it."""
    folder = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", folder)
    interpreter = folder / "bin" / "python"
    try:
        run(interpreter, "-m", "pip", "install", "-q", "scikit-build-core>=0.10", "numpy", "pytest")
    except AssertionError as error:
        pytest.skip(f"no scikit-build-core and NumPy for a fresh Python: {str(error).splitlines()[-1]}")
    return interpreter


def test_wheel(python, tmp_path):
    run(python, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path,
        "--config-settings", f"cmake.define.HLA_LIBRARY={os.environ['HLA_LIBRARY']}", ROOT)  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    assert "-py3-none-linux_" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "hla/lib/libhla.so.0" in names and "hla/py.typed" in names and not any("train" in name for name in names)
    run(python, "-m", "pip", "install", "-q", "--no-deps", wheel)
    script = "import hla, sys; print(hla._library.path(), 'torch' in sys.modules); hla.HadamardAttention"
    done = subprocess.run([python, "-c", script], env=ENVIRONMENT, cwd="/", text=True, capture_output=True)
    assert done.stdout.endswith("site-packages/hla/lib/libhla.so.0 False\n")
    assert "ModuleNotFoundError: No module named 'torch'" in done.stderr
    report = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", ROOT / "tests" / "python" / "test_numpy.py")
    assert " passed" in report and "skipped" not in report


def test_library_that_is_none(tmp_path):
    """HLA_LIBRARY is used, or refused with a sentence."""
    for library, sentence in (("/nonexistent.so", "libhla cannot be loaded"), ("libm.so.6", "no function hla_version")):
        environment = {**os.environ, "HLA_LIBRARY": library, "PYTHONPATH": str(ROOT / "python")}
        done = subprocess.run([sys.executable, "-c", "import hla"], env=environment, text=True, capture_output=True)
        assert done.returncode == 1 and f"ImportError: {sentence}" in done.stderr.replace(f"{library} has ", "")
