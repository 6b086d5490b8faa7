"""Weight-only quantized matrix product."""

from __future__ import annotations

import numpy as np

from . import ref
from .array import Array, array_module, bfloat16, check_array
from .weight import QuantWeight


def matmul(x: Array, w: QuantWeight, *, out: Array | None = None) -> Array:
    """y = x @ dequantize(w) + bias, rounded once.

    x    (M, K) float16 or bfloat16, columns in the order of the weight's rows
    w    any order of rows: the scale of row k is looked up at g_idx[k]
    out  (M, N) of x's dtype, or None to allocate it

    The same input gives the same bits on every run. Raises TypeError for another dtype or for mixed NumPy and CuPy
    arrays, ValueError for shapes that do not fit.
    """
    check_array("x", x, ("M", w.K), np.float16, bfloat16)
    array_module(x, w.codes, out)
    if out is not None:
        check_array("out", out, (x.shape[0], w.N), x.dtype)
    y = ref.gemm(x, w.codes, w.scales, w.zeros, w.g_idx, w.bias)
    if out is None:
        return y
    out[...] = y
    return out
