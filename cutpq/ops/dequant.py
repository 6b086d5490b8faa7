"""Quantized weight to plain weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..array import Array, array_module, bfloat16, ceil_div, check_array
from ..kernels import load as kernels
from ..kernels.config import Config, dtype_code
from ..weights.pack import PackedWeight, unpack
from ..weights.weight import QuantWeight
from . import formulas as ref
from .engine import dequant as engine
from .engine.choice import uses_engine


@dataclass(frozen=True)
class DequantConfig(Config):
    """dequant: codes of BITS, 4 or 8; LOOKUP finds the group of a row in g_idx."""

    BITS: int
    DTYPE: int
    LOOKUP: bool
    THREADS: int = 128

    def grid(self, K: int, columns: int) -> tuple[int, int]:
        """A thread takes 32 rows of two columns."""
        return ceil_div(columns, 2 * self.THREADS), ceil_div(K, 32)


# A group size beyond the rows of any weight, a multiple of 32.
ONE_GROUP = 1 << 30


def dequantize(w: QuantWeight | PackedWeight, dtype: Any = np.float16) -> Array:
    """weight[k, n] = (codes[k, n] - zeros[g_idx[k], n]) * scales[g_idx[k], n], (K, N) in the weight's order of rows.

    dtype  float16 (default), bfloat16 or float32

    The difference is exact, the product is float32, and it is rounded once to dtype: equal bit for bit on every
    device. Raises TypeError for another dtype.
    """
    allowed = (np.dtype(np.float16), bfloat16, np.dtype(np.float32))
    if np.dtype(dtype) not in allowed:
        raise TypeError(f"dtype must be one of {', '.join(d.name for d in allowed)}, got {np.dtype(dtype).name}")
    if isinstance(w, PackedWeight):
        if kernels.usable(array_module(w.words)) and np.dtype(dtype) != np.float32 and w.N % 2 == 0:
            return dequantize_columns(w, slice(0, w.N), dtype)
        w = unpack(w)
    if uses_engine(array_module(w.codes)):
        return engine.dequant(w.codes, w.scales, w.zeros, w.g_idx, w.bits, dtype)
    return ref.dequant(w.codes, w.scales, w.zeros, w.g_idx, dtype)


def dequantize_columns(
    p: PackedWeight, columns: slice, dtype: Any = np.float16, *, rows: Array | None = None, out: Array | None = None
) -> Array:
    """dequantize(p)[:, columns] by the kernel `dequant`; with `rows`, row k goes to rows[k].

    columns  start and stop, of which there is an even number
    dtype    float16 or bfloat16
    rows     (K,) int32, a permutation: perm of sort_groups puts sorted rows back into disk order
    out      (K, columns) of dtype, or None to allocate it
    """
    xp = array_module(p.words, rows, out)
    shape = (p.K, columns.stop - columns.start)
    weight = xp.empty(shape, dtype) if out is None else check_array("out", out, shape, dtype)
    config = DequantConfig(
        BITS=p.bits,
        DTYPE=dtype_code(dtype),
        LOOKUP=p.g_idx is not None,
    )
    kernel = kernels.load("dequant", config, xp)
    kernel(
        config.grid(p.K, shape[1]),
        config.THREADS,
        p.words,
        p.scales,
        p.zeros,
        p.g_idx,
        rows,
        weight,
        p.K,
        p.padded_K,
        p.padded_N,
        p.group_size or ONE_GROUP,
        columns.start,
        shape[1],
    )
    return weight
