"""Makes bench/ and tests/ importable: benches are scripts, and tests share helpers."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
for folder in (ROOT / "bench", ROOT / "tests"):
    sys.path.insert(0, str(folder))

import blas_single  # noqa: E402, F401  before NumPy: ranks are threads in most tests
