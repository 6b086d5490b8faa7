"""Random quantized weights in memory, for tests that need no file."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cutpq.array import array_module
from cutpq.weights.pack import SCATTERED, PackedWeight
from cutpq.weights.weight import QuantWeight


def act_order(K: int, group_size: int, rng: np.random.Generator) -> np.ndarray:
    """g_idx as act-order leaves it: full groups of group_size rows, scattered."""
    return (rng.permutation(K) // group_size).astype(np.int32)


def random_weight(
    K: int,
    N: int,
    group_size: int,
    *,
    seed: int = 0,
    g_idx: np.ndarray | None = None,
    bits: int = 4,
    symmetric: bool = False,
    bias: bool = False,
    exact: bool = False,
) -> QuantWeight:
    """act-ordered unless g_idx is given. `exact`: scales are powers of two, so that small integer x sum exactly."""
    rng = np.random.default_rng(seed)
    g_idx = act_order(K, group_size, rng) if g_idx is None else g_idx.astype(np.int32)
    G = max(-(-K // group_size), int(g_idx.max()) + 1)
    scales = 2.0 ** rng.integers(-3, 1, (G, N)) if exact else rng.uniform(0.5, 1.5, (G, N)) / K**0.5 / 2**bits
    zeros = np.full((G, N), 2 ** (bits - 1)) if symmetric else rng.integers(0, 2**bits, (G, N))
    return QuantWeight(
        codes=rng.integers(0, 2**bits, (K, N)).astype(np.uint8),
        scales=scales.astype(np.float16),
        zeros=zeros.astype(np.uint8),
        g_idx=g_idx,
        bits=bits,
        group_size=group_size,
        bias=(rng.standard_normal(N) / 8).astype(np.float16) if bias else None,
    )


def as_scattered(p: PackedWeight) -> PackedWeight:
    """The same weight for the kernel that looks every row's group up: what the other look-ups are compared with."""
    xp = array_module(p.words)
    groups = xp.arange(p.padded_K, dtype=xp.int32) // (p.group_size or p.padded_K)
    g_idx = xp.minimum(groups, p.scales.shape[0] - 1) if p.g_idx is None else p.g_idx
    return replace(p, scale_lookup=SCATTERED, group_size=0, g_idx=g_idx)
