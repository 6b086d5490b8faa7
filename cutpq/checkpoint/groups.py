"""Groups of rows that share a scale: how many, which row is in which, and the scales themselves."""

from __future__ import annotations

import numpy as np

from ..array import ceil_div
from ..weights.weight import is_ordered
from .tensors import Tensors

FLOATS = ("F16", "BF16", "F32")


def group_count(K: int, group_size: int) -> int:
    """Groups of K rows; the last may be short. group_size -1 is one group."""
    return 1 if group_size == -1 else ceil_div(K, group_size)


def check_group_count(tensors: Tensors, name: str, found: int, K: int, group_size: int) -> None:
    """Raise unless tensor `name`, which holds `found` groups, agrees with the claimed group size."""
    G = group_count(K, group_size)
    if found != G:
        raise tensors.error(name, f"{G} groups, for K={K} rows in groups of group_size={group_size}", f"{found} groups")


def trivial_order(K: int, group_size: int) -> np.ndarray:
    """The g_idx of rows in order: k // group_size, or 0 for group_size -1. (K,) int32."""
    return np.arange(K, dtype=np.int32) // (K if group_size == -1 else min(group_size, K))


def read_g_idx(tensors: Tensors, name: str) -> np.ndarray:
    """The g_idx tensor `name` as it is stored, as int64."""
    return tensors.read(name).astype(np.int64)


def check_g_idx(tensors: Tensors, name: str, g_idx: np.ndarray, G: int) -> np.ndarray:
    """`g_idx` as int32. Raises CheckpointError, naming tensor and row, for a value that is not one of 0 .. G-1."""
    wrong = np.flatnonzero((g_idx < 0) | (g_idx >= G))
    if len(wrong):
        raise tensors.error(name, f"groups 0 to {G - 1}", f"{g_idx[wrong[0]]} for row {wrong[0]}")
    return g_idx.astype(np.int32)


def order_kind(g_idx: np.ndarray, group_size: int) -> str:
    """ "trivial", "ordered" or "act-order", see claims.Inspection."""
    if np.array_equal(g_idx, trivial_order(len(g_idx), group_size)):
        return "trivial"
    return "ordered" if is_ordered(g_idx) else "act-order"


def read_scales(tensors: Tensors, name: str, columns: slice | np.ndarray, transposed: bool = False) -> np.ndarray:
    """Columns of the scales (G, N), stored transposed or not: float16 as it is, bfloat16 and float32 as float32.

    Raises CheckpointError for NaN and infinity, which no writer means.
    """
    scales = tensors.read(name)
    scales = (scales.T if transposed else scales)[:, columns]
    wrong = np.argwhere(~np.isfinite(scales))
    if len(wrong):
        group, n = map(int, wrong[0])
        where = f"group {group}, column {n} of those asked for"
        raise tensors.error(name, "finite scales", f"{scales[group, n]} at {where}")
    return np.ascontiguousarray(scales if scales.dtype == np.float16 else scales.astype(np.float32))


def read_bias(tensors: Tensors, name: str, N: int, columns: slice | np.ndarray) -> np.ndarray | None:
    """Columns of the bias (N,), float16 or float32 like the scales; None where the module has none."""
    if name not in tensors:
        return None
    tensors.check(name, (N,), *FLOATS)
    bias = tensors.read(name)[columns]
    return np.ascontiguousarray(bias if bias.dtype == np.float16 else bias.astype(np.float32))
