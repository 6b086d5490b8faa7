"""Which rows and columns a rank holds: bounds on group borders, and the shards themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from ..array import Array, array_module, ceil_div, to_numpy
from .schemes import count_groups, refusals
from .weight import QuantWeight


def even_shares(n: int, tp: int, granule: int = 1) -> list[int]:
    """n things over tp ranks in whole granules, as evenly as possible: the first ranks take one granule more.

    The last granule may be short, and a rank's share may be 0.
    """
    each, more = divmod(ceil_div(n, granule), tp)
    ends = [min((rank * each + min(rank, more)) * granule, n) for rank in range(tp + 1)]
    return [end - start for start, end in pairwise(ends)]


def even_bounds(K: int, tp: int, multiple: int = 1) -> np.ndarray:
    """(tp + 1,) int64 bounds that cut 0 .. K as evenly as possible into multiples of `multiple`.

    The first ranks take one multiple more where they do not divide; the last rank takes what K leaves over.
    Raises ValueError where a rank would get nothing.
    """
    _check_tp(tp)
    units = ceil_div(K, multiple)
    if tp > units:
        raise ValueError(f"tp={tp} ranks cannot share K={K} in multiples of {multiple}: at most tp={units}")
    return _ends(even_shares(K, tp, multiple))


def group_bounds(g_idx: Array, tp: int) -> np.ndarray:
    """(tp + 1,) int64 row bounds in *sorted* order (see permutation.sort_groups), on group borders.

    Rank r takes rows bounds[r] .. bounds[r+1] of the sorted weight: whole groups, as many on each rank as possible,
    the first ranks one more (231 groups over 8 ranks: seven of 29, one of 28). No group is on two ranks, so a rank
    needs the scales of its own groups only. Groups that own no row do not count.

    g_idx  (K,) integers
    Raises ValueError for tp > number of groups.
    """
    _check_tp(tp)
    sizes = np.bincount(to_numpy(g_idx))
    sizes = sizes[sizes > 0]
    refused = refusals(len(sizes), tp)
    if refused:
        raise ValueError(
            f"group_bounds {refused['tp-aware']}: use tp <= {len(sizes)}, or the scheme 'local' or 'unordered', "
            "which cut between any two rows"
        )
    return _ends(sizes)[_ends(even_shares(len(sizes), tp))]


def default_bounds(g_idx: Array, tp: int) -> np.ndarray:
    """group_bounds, or an even cut in multiples of 8 where there are more ranks than groups."""
    return group_bounds(g_idx, tp) if tp <= count_groups(g_idx) else even_bounds(len(g_idx), tp, multiple=8)


def head_bounds(heads: int, kv_heads: int, tp: int) -> np.ndarray:
    """(tp + 1,) int64 bounds of the ranks' query heads: between key/value heads while there are enough of these.

    Raises ValueError for more ranks than heads.
    """
    if tp > heads:
        raise ValueError(f"tp={tp} ranks cannot share {heads} attention heads: at most tp={heads}")
    if tp <= kv_heads:
        return even_bounds(kv_heads, tp) * (heads // kv_heads)
    return even_bounds(heads, tp)


def shard_rows(w: QuantWeight, rows: slice | Array) -> QuantWeight:
    """The rows of `w` that a rank holds, with the scales and zeros of just the groups these rows belong to.

    rows  a slice, or integers in the order wanted
    The groups are renumbered 0, 1, ... in their old order; bias is kept (a row-parallel layer adds it once).
    """
    xp = array_module(w.codes)
    used, g_idx = xp.unique(w.g_idx[rows], return_inverse=True)
    return replace(
        w, codes=w.codes[rows], scales=w.scales[used], zeros=w.zeros[used], g_idx=g_idx.astype(xp.int32).ravel()
    )


def shard_columns(w: QuantWeight, columns: slice | Array) -> QuantWeight:
    """The columns of `w` that a rank holds: codes, scales, zeros and bias.

    columns  a slice, or integers in the order wanted (so that order and cut cost one gather)
    """
    # Gathered columns would otherwise lie in memory column by column, and every later pass over rows be slow.
    codes, scales, zeros = (array_module(a).ascontiguousarray(a[:, columns]) for a in (w.codes, w.scales, w.zeros))
    bias = None if w.bias is None else w.bias[columns]
    return replace(w, codes=codes, scales=scales, zeros=zeros, bias=bias)


def _ends(sizes: Sequence[int] | np.ndarray) -> np.ndarray:
    """0 and the sums of the first one, two, ... sizes, int64."""
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def _check_tp(tp: int) -> None:
    if tp < 1:
        raise ValueError(f"tp={tp} must be at least 1")
