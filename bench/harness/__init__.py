"""What the benches share: flags, tables, clocks, and which BLAS runs."""

import os
from pathlib import Path

# Under CUTPQ_HOST_KERNELS=1 benches and tests run the kernels on NumPy arrays by this runtime of the checkout.
_RUNTIME = Path(__file__).resolve().parents[2] / "tests" / "simt" / "cpu_cuda.py"
os.environ.setdefault("CUTPQ_HOST_RUNTIME", str(_RUNTIME))
