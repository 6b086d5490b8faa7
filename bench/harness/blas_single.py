"""Import before NumPy: one BLAS thread a call, for benches whose ranks are threads of one process.

Each rank's products would otherwise wait for a pool of threads, one a core, that all ranks share.
"""

import os

for _name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
