"""Where HLA_LIBRARY names a libhla, it is tested with the package in python/; else the installed package is."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if "HLA_LIBRARY" in os.environ:
    sys.path.insert(0, str(ROOT / "python"))
