"""Import before NumPy: gives each rank of a node its share of the cores for matrix products.

A BLAS starts a thread per core in every process. With 8 ranks on 2 cores these wait for one another, and a product
takes ten times as long.
"""

import os

_ranks = int(os.environ.get("MPI_LOCALNRANKS") or os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") or 1)
if _ranks > 1:
    _share = str(max(1, (os.cpu_count() or 1) // _ranks))
    for _name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(_name, _share)
