"""The sum of an array over all ranks."""

from __future__ import annotations

from .array import Array, check_array
from .comm import Communicator


def all_reduce(x: Array, comm: Communicator, out: Array | None = None) -> Array:
    """out = sum over ranks of x, rounded once to x's dtype; equal on all ranks bit for bit (see comm.all_reduce).

    x    any shape, the same on all ranks; NumPy or CuPy, as comm takes it
    out  x's shape and dtype; may be x
    """
    if out is not None:
        check_array("out", out, x.shape, x.dtype)
    total = comm.all_reduce(x)
    if out is None:
        return total
    out[...] = total
    return out
