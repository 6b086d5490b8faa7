"""Act-order as a permutation: rows of one group made contiguous, and columns that follow another layer's rows."""

from __future__ import annotations

from dataclasses import replace

from ..array import Array, array_module, check_array
from .shard import shard_columns
from .weight import QuantWeight


def sorting_permutation(g_idx: Array) -> Array:
    """P = stable argsort of g_idx, (K,) int32: sorted row i is disk row P[i].

    Stable, so that rows of one group keep their order and every rank computes the same P. Compute it once per
    layer: codes, zeros, scales, bias and the columns of the layer before must all follow the same permutation.
    """
    return array_module(g_idx).argsort(g_idx, kind="stable").astype("int32")


def sort_groups(w: QuantWeight) -> tuple[QuantWeight, Array]:
    """Make every group contiguous along K. Returns the sorted weight and perm (K,) int32.

    New row i is old row perm[i], therefore  x @ dequantize(w) == x[:, perm] @ dequantize(sorted).
    """
    perm = sorting_permutation(w.g_idx)
    return replace(w, codes=w.codes[perm], g_idx=w.g_idx[perm]), perm


def permute_columns(w: QuantWeight, perm: Array) -> QuantWeight:
    """New column j is old column perm[j]: codes, scales, zeros and bias together.

    perm  (N,) integers, each of 0 .. N-1 once

    Raises ValueError where perm is no permutation of the columns.
    """
    check_permutation("perm", perm, w.N)
    return shard_columns(w, perm)


def invert(perm: Array) -> Array:
    """The permutation that undoes `perm`: invert(perm)[perm[i]] == i. (n,) int32."""
    check_permutation("perm", perm, len(perm))
    xp = array_module(perm)
    inverse = xp.empty(len(perm), xp.int32)
    inverse[perm] = xp.arange(len(perm), dtype=xp.int32)
    return inverse


def check_permutation(name: str, perm: Array, n: int) -> None:
    """Raise unless `perm` holds each of 0 .. n-1 once."""
    xp = array_module(perm)
    check_array(name, perm, (n,))
    if perm.dtype.kind not in "iu":
        raise TypeError(f"{name} must hold integers, got {perm.dtype}")
    # A value out of range must not reach bincount, which would allocate up to it (or raise for a negative one).
    if n and (int(perm.min()) < 0 or int(perm.max()) >= n):
        raise ValueError(f"{name} holds {int(perm.min())} .. {int(perm.max())}, must hold each of 0 .. {n - 1} once")
    counts = xp.bincount(perm, minlength=n)
    if not bool((counts == 1).all()):
        twice = int(counts.argmax())
        raise ValueError(f"{name} must hold each of 0 .. {n - 1} once, but holds {twice} {int(counts[twice])} times")
