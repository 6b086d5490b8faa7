"""The five schemes for a row-parallel layer whose rows are act-ordered: names, and which a number of ranks allows."""

from __future__ import annotations

import numpy as np

from ..array import Array, to_numpy

# layers/linear.py says how each works.
SCHEMES = ("unordered", "naive", "all-to-all", "local", "tp-aware")

# These give a rank whole groups of the sorted weight; the other two cut the rows as they lie on disk.
GROUP_ALIGNED = ("naive", "all-to-all", "tp-aware")


def count_groups(g_idx: Array) -> int:
    """How many groups own a row: distinct values of g_idx, (K,) integers."""
    return len(np.unique(to_numpy(g_idx)))


def refusals(groups: int, tp: int) -> dict[str, str]:
    """The schemes that `tp` ranks cannot use on a weight of so many groups, each with the reason; else {}.

    The reason continues a sentence that begins with the scheme's name.
    """
    if tp <= groups:
        return {}
    return dict.fromkeys(GROUP_ALIGNED, f"gives every rank whole groups, and tp={tp} is more than {groups} groups")
