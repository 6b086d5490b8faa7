"""Quantized weight to plain weight."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import ref
from .array import Array, bfloat16
from .weight import QuantWeight


def dequantize(w: QuantWeight, dtype: Any = np.float16) -> Array:
    """weight[k, n] = (codes[k, n] - zeros[g_idx[k], n]) * scales[g_idx[k], n], (K, N) in disk order.

    dtype  float16 (default), bfloat16 or float32

    The difference is exact, the product is float32, and it is rounded once to dtype: equal bit for bit on every
    device. Raises TypeError for another dtype.
    """
    allowed = (np.dtype(np.float16), bfloat16, np.dtype(np.float32))
    if np.dtype(dtype) not in allowed:
        raise TypeError(f"dtype must be one of {', '.join(d.name for d in allowed)}, got {np.dtype(dtype).name}")
    return ref.dequant(w.codes, w.scales, w.zeros, w.g_idx, dtype)
