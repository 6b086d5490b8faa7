"""Attention of one new token a sequence, by a kernel that a CUDA graph can capture: split over the keys, one launch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from ..array import Array, array_module, bfloat16, ceil_div, check_array, once_per_kind
from ..kernels import load as kernels
from ..kernels.config import Config, Device, dtype_code
from ..kernels.workspace import workspace

# Blocks for each multiprocessor if all sequences fill the cache. Where sequences are shorter, blocks beyond their ends
# have no keys: with a third of the cache filled, two blocks on each multiprocessor still have work.
BLOCKS_PER_SM = 6


@dataclass(frozen=True)
class DecodeAttentionConfig(Config):
    """decode_attention: HEADS query heads of D features at a time: all 16 rows of an mma fragment, or 8 of them."""

    DTYPE: int
    D: int
    HEADS: int
    THREADS: int = 128

    @property
    def part_floats(self) -> int:
        """Floats of a part, as PART in tile/attention_parts.cuh."""
        return self.HEADS * (self.D + 2)

    @property
    def smem_bytes(self) -> int:
        """Shared memory of a block: queries, a part of each warp, and the number of arrivals."""
        return 2 * self.HEADS * self.D + 4 * self.THREADS // 32 * self.part_floats + 16

    def split_keys(self, pairs: int, length: int, device: Device) -> int:
        """Keys of a split: every warp of a block has as many tiles of 16, at least two.

        pairs  blocks of one split: key/value heads of all sequences, times blocks for the query heads of each

        It depends on the cache and the device alone, so that the bits of a result do, too.
        """
        splits = ceil_div(BLOCKS_PER_SM * device.sms, pairs)
        step = self.THREADS // 32 * 16
        return max(2, ceil_div(ceil_div(length, splits), step)) * step


def config_for(dtype: Any, D: int, rep: int) -> DecodeAttentionConfig:
    """The configuration for `rep` query heads of D features that share a key/value head."""
    return DecodeAttentionConfig(dtype_code(dtype), D, 8 if rep <= 8 else 16)


def takes(dtype: Any, D: int, rep: int, xp: ModuleType) -> bool:
    """Whether decode_attention has a kernel: float16 or bfloat16, D a multiple of 16 up to 256, arrays of `xp`."""
    return dtype in (np.float16, bfloat16) and D % 16 == 0 and 16 <= D <= 256 and rep >= 1 and kernels.usable(xp)


def decode_attention(
    q: Array,
    keys: Array,
    values: Array,
    positions: Array,
    scale: float,
    window: int | None = None,
    *,
    max_keys: int,
    out: Array | None = None,
) -> Array:
    """softmax(scale q k^T) v of one query token a sequence, (B, KV * rep * D): query heads side by side.

    q          (B, KV, rep, D) float16 or bfloat16; query heads kv * rep ... of key/value head kv
    keys       (B, KV, length, D) of q's dtype, the new token's among them
    values     (B, KV, length, D) of q's dtype
    positions  (B,) int32: sequence b attends to keys max(0, p - window + 1) ... p where p = positions[b]; the result
               for p = -1 is 0. On a GPU only the kernel reads it: a replayed graph may find other positions
    scale      above 0
    window     a query attends to at most this many keys, its own the last; None for all
    max_keys   every position is below it, and it is at most length: it decides the number of blocks, not the result

    Scores and sums are float32. A probability is rounded to q's dtype before it multiplies a value; the result is
    rounded once. Deterministic, and a row depends on its own sequence alone. Raises ValueError for a shape, scale or
    max_keys that does not fit, TypeError for another dtype.
    """
    _check(q, keys, values, positions)
    xp, (B, KV, rep, D), length = array_module(q), q.shape, keys.shape[2]
    if not 1 <= max_keys <= length:
        raise ValueError(f"max_keys must be 1 to {length}, the length of the cache, got {max_keys}")
    if not 0 < scale < math.inf:
        raise ValueError(f"scale must be above 0 and finite, got {scale}")
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    y = xp.empty((B, KV * rep * D), q.dtype) if out is None else check_array("out", out, (B, KV * rep * D), q.dtype)
    launch, floats, counters = _plan(xp, q.shape, q.dtype, length, max_keys, window, scale)
    launch(q, keys, values, positions, y, *workspace(xp, floats, counters))
    return y


@once_per_kind
def _check(q: Array, keys: Array, values: Array, positions: Array) -> None:
    check_array("q", q, ("B", "KV", "rep", "D"), np.float16, bfloat16)
    B, KV, rep, D = q.shape
    check_array("keys", keys, (B, KV, "length", D), q.dtype)
    check_array("values", values, keys.shape, q.dtype)
    check_array("positions", positions, (B,), np.int32)
    if not takes(q.dtype, D, rep, array_module(q, keys, values, positions)):
        raise ValueError(f"D must be a multiple of 16 from 16 to 256, got D={D}; use the formula for others")


@kernels.kept
def _plan(
    xp: ModuleType,
    shape: tuple[int, ...],
    dtype: np.dtype,
    length: int,
    max_keys: int,
    window: int | None,
    scale: float,
) -> tuple[kernels.Launch, int, int]:
    """The launch for q of this shape, and the floats and counters of its workspace."""
    B, KV, rep, D = shape
    config = config_for(dtype, D, rep)
    blocks = B * KV * ceil_div(rep, config.HEADS)
    split_keys = config.split_keys(blocks, length, kernels.device(xp))
    splits = ceil_div(max_keys, split_keys)
    launch = kernels.load("decode_attention", config, xp).settled(
        (blocks, splits), config.THREADS, KV, rep, length, split_keys,
        length if window is None else min(window, length), scale * math.log2(math.e), smem_bytes=config.smem_bytes,
    )  # fmt: skip
    return launch, blocks * splits * config.part_floats if splits > 1 else 1, blocks
