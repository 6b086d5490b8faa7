"""Matrix products with quantized or plain weights."""

from __future__ import annotations

import numpy as np

from . import ref
from .array import Array, array_module, bfloat16, check_array
from .weight import PlainWeight, Weight


def matmul(x: Array, w: Weight, *, out: Array | None = None) -> Array:
    """y = x @ dequantize(w) + bias, rounded once; a plain weight is multiplied as it is.

    x    (M, K) float16, bfloat16 or float32, columns in the order of the weight's rows
    w    quantized, in any order of rows (the scale of row k is looked up at g_idx[k]), or plain
    out  (M, N) of x's dtype, or None to allocate it

    Weights are rounded to x's dtype before, quantized ones to float16 where x is float32. The same input gives the
    same bits on every run. Raises TypeError for another dtype or for mixed NumPy and CuPy arrays, ValueError for
    shapes that do not fit.
    """
    check_array("x", x, ("M", w.K), np.float16, bfloat16, np.float32)
    xp = array_module(x, w.weight if isinstance(w, PlainWeight) else w.codes, out)
    if out is not None:
        check_array("out", out, (x.shape[0], w.N), x.dtype)
    if isinstance(w, PlainWeight):
        y = ref.gemm_plain(x, w.weight, w.bias) if xp is np else _cublas(x, w)
    else:
        y = ref.gemm(x, w.codes, w.scales, w.zeros, w.g_idx, w.bias)
    if out is None:
        return y
    out[...] = y
    return out


def _cublas(x: Array, w: PlainWeight) -> Array:
    """The same by CuPy's product, which adds in float32; a bias costs a second rounding. Has not run on a GPU yet."""
    y = x @ w.weight.astype(x.dtype, copy=False)
    return y if w.bias is None else y + w.bias.astype(x.dtype, copy=False)
