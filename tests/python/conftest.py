"""The package comes from python/ of this tree, with the libhla that the environment variable HLA_LIBRARY names."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "python"))
