"""The example of python/README.md, as it stands there."""

import re

import pytest
from conftest import ROOT

pytest.importorskip("torch")


def test_readme(capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "python" / "README.md").read_text(), re.DOTALL)
    names = {}
    exec(blocks[0], names)
    assert names["out"].shape == (1, 4096, 12, 128) and names["v"].grad.isfinite().all()
    assert "state form" in capsys.readouterr().out
