"""Attention of new tokens to their sequences: rotation, the cache's append, softmax(scale q k^T) v.

On a GPU two kernels and two products of cuBLAS: rotate_qkv puts queries, keys and values where the products read them,
cuBLAS writes float32 scores, softmax makes them probabilities, cuBLAS multiplies those by the values, and CuPy rounds
the result and puts the heads of a token together. Scores pass through L2; cuDNN's fused attention would save that, but
its wheels are 700 MB and need a package of their own.

Float32 activations, head dimensions that are no multiple of 16, ranks whose heads share keys unevenly, and NumPy
arrays take the formulas in ref_transformer.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..array import Array, aligned, array_module, bfloat16, ceil_div, check_array
from ..kernels import config as configs
from ..kernels import kernel as kernels
from ..ops.batched_product import batched_product
from . import formulas as ref
from .cache import KEYS_ALIGN, Batch, Kept

# cos and sin of each token's angles, (M, head_dim / 2) float32; None without rotation
Angles = tuple[Array, Array] | None

# Scores are computed in chunks that take at most this: they stay in the L2 of an A100 (40 MiB) or H100 (50 MiB).
SCORE_BYTES = 32 << 20
# So many rows of scores make a product that reads its keys seldom enough: rather fewer heads at a time than fewer rows.
CHUNK_ROWS = 512


def attention(
    qkv: Array,
    angles: Angles,
    kept: Kept,
    batch: Batch,
    kv_of_head: np.ndarray,
    scale: float,
    window: int | None = None,
) -> Array:
    """softmax(scale q k^T) v of each new token and head, (M, H * D); keys and values of the new tokens are kept.

    qkv         (M, (H + 2 KV) * D): queries, keys and values of each token, head by head
    angles      by which queries and keys are rotated
    kept        of this layer; KV and D are its own
    kv_of_head  (H,) the key/value head of each query head, in host memory
    scale       above 0
    window      a query sees only so many keys, its own the last; None for all

    float16 and bfloat16 are added up in float32 and rounded: q and k after rotation, probabilities, and the result.
    Deterministic. Raises ValueError for a shape or scale that does not fit, TypeError for another dtype than kept's.
    """
    _, KV, _, D = kept.keys.shape
    M, H = len(batch.tokens), len(kv_of_head)
    check_array("qkv", qkv, (M, (H + 2 * KV) * D), kept.keys.dtype)
    if not scale > 0:
        raise ValueError(f"scale must be above 0, got {scale}")
    if not _has_kernels(qkv, D, kv_of_head, KV):
        return _by_formula(qkv, angles, kept, batch, kv_of_head, scale, window)
    q = rotate_qkv(qkv, angles, kept, batch)
    y = _attend(q, kept, batch, scale, window)
    return batch.unpad(y.swapaxes(1, 2).astype(qkv.dtype, order="C").reshape(*batch.positions.shape, H * D))


def _has_kernels(qkv: Array, D: int, kv_of_head: np.ndarray, KV: int) -> bool:
    rep, uneven = divmod(len(kv_of_head), KV)
    shared_evenly = not uneven and np.array_equal(kv_of_head, np.arange(len(kv_of_head)) // rep)
    return qkv.dtype.itemsize == 2 and D % 16 == 0 and shared_evenly and kernels.usable(array_module(qkv))


def _by_formula(
    qkv: Array, angles: Angles, kept: Kept, batch: Batch, kv_of_head: np.ndarray, scale: float, window: int | None
) -> Array:
    xp = array_module(qkv)
    _, KV, _, D = kept.keys.shape
    heads = qkv.reshape(len(qkv), -1, D)
    q, k, v = heads[:, : -2 * KV], heads[:, -2 * KV : -KV], heads[:, -KV:]
    if angles is not None:
        q, k = ref.rotate(q, *angles), ref.rotate(k, *angles)
    keys, values = kept.extend(k, v, batch)
    y = ref.attention(batch.pad(q), keys, values, batch.positions, xp.asarray(kv_of_head), scale, window)
    return batch.unpad(y).reshape(len(qkv), -1)


def rotate_qkv(qkv: Array, angles: Angles, kept: Kept, batch: Batch) -> Array:
    """Queries, rotated, as (batch, KV, T, H / KV, D); keys, rotated, and values are put into their places of `kept`.

    qkv  (M, (H + 2 KV) * D) float16 or bfloat16, D a multiple of 16 and H of KV; head h of the queries has the
         key/value head h * KV // H

    Queries that a sequence with fewer than T new tokens does not have are zero.
    """
    (B, KV, length, D), T = kept.keys.shape, batch.positions.shape[1]
    check_array("qkv", qkv, ("M", "(H + 2 KV) * D"), np.float16, bfloat16)
    M, N = qkv.shape
    if D % 16 or N % (KV * D):
        raise ValueError(f"D must be a multiple of 16 and H of KV={KV}, got D={D} and {N} columns of qkv")
    xp, rep = array_module(qkv, kept.keys), N // (KV * D) - 2
    q = (xp.empty if batch.places is None else xp.zeros)((B, KV, T, rep, D), qkv.dtype)
    cosines, sines = (None, None) if angles is None else map(aligned, angles)
    config = configs.RotateConfig(configs.dtype_code(qkv.dtype))
    kernel = kernels.load("rotate_qkv", config, xp)
    kernel(
        config.grid(qkv.size), config.THREADS, aligned(qkv), cosines, sines,
        batch.places, batch.query_positions, q, kept.keys, kept.values, M, T, length, KV, rep, D,
    )  # fmt: skip
    return q


def _attend(q: Array, kept: Kept, batch: Batch, scale: float, window: int | None) -> Array:
    """softmax(scale q k^T) v in float32; q and the result (batch, KV, T, rep, D)."""
    xp = array_module(q)
    B, KV, T, rep, D = q.shape
    y = xp.empty(q.shape, np.float32)
    queries, results = q.reshape(B * KV, T * rep, D), y.reshape(B * KV, T * rep, D)
    keys, values = kept.keys.reshape(B * KV, -1, D), kept.values.reshape(B * KV, -1, D)
    for chunk in chunks(batch.positions, B * KV, rep, window):
        pairs, rows, seen = chunk.pairs, slice(chunk.queries.start * rep, chunk.queries.stop * rep), chunk.keys
        scores = xp.empty(chunk.shape(rep), np.float32)
        batched_product(queries[pairs, rows], keys[pairs, seen].swapaxes(1, 2), scores)
        shares = softmax(scores, batch.query_positions, chunk, KV, scale, window, q.dtype)
        batched_product(shares, values[pairs, seen], results[pairs, rows])
    return y


@dataclass(frozen=True)
class Chunk:
    """Scores that are computed at a time: of some pairs of sequence and key/value head, queries, and keys they see."""

    pairs: slice
    queries: slice
    keys: slice

    def shape(self, rep: int) -> tuple[int, int, int]:
        """Of the scores, where `rep` query heads share a key/value head."""
        pairs, queries, keys = (part.stop - part.start for part in (self.pairs, self.queries, self.keys))
        return pairs, queries * rep, keys


def chunks(positions: np.ndarray, pairs: int, rep: int, window: int | None) -> Iterator[Chunk]:
    """Every query of every pair once; each chunk has the keys that its queries see, from a multiple of 8 to another.

    positions  (batch, T) of the queries, -1 for those that do not exist
    pairs      of a sequence and a key/value head, which has `rep` query heads

    A chunk's scores fit SCORE_BYTES, unless those of a single query and pair do not.
    """
    T = positions.shape[1]
    fit = SCORE_BYTES // (4 * _aligned(int(positions.max()) + 1))  # rows
    step = max(1, min(max(fit // pairs, CHUNK_ROWS), fit) // rep)
    pair_step = max(1, fit // (min(step, T) * rep))
    for first in range(0, T, step):
        queries = slice(first, min(first + step, T))
        own = positions[:, queries]
        own = own[own >= 0]
        first_key = 0 if window is None else max(0, int(own.min()) - window + 1)
        keys = slice(first_key // KEYS_ALIGN * KEYS_ALIGN, _aligned(int(own.max()) + 1))
        for pair in range(0, pairs, pair_step):
            yield Chunk(slice(pair, min(pair + pair_step, pairs)), queries, keys)


def _aligned(keys: int) -> int:
    return ceil_div(keys, KEYS_ALIGN) * KEYS_ALIGN


def softmax(
    scores: Array, positions: Array, chunk: Chunk, kv_heads: int, scale: float, window: int | None, dtype: np.dtype
) -> Array:
    """exp(scale * scores) / sum over the keys that a query sees, 0 for the others: probabilities, as scores' shape.

    scores     (pairs, queries * rep, keys) float32 of a chunk; a multiple of 8 keys
    positions  (batch, T) int32 of all queries; -1 for one that does not exist, and whose row becomes zero
    kv_heads   of each sequence
    dtype      of the probabilities: float16 or bfloat16

    Deterministic.
    """
    rows, columns = scores.shape[1:]
    rep = rows // (chunk.queries.stop - chunk.queries.start)
    check_array("scores", scores, chunk.shape(rep), np.float32)
    check_array("positions", positions, ("batch", "T"), np.int32)
    if columns % 8:
        raise ValueError(f"scores must be of a multiple of 8 keys, got {columns}")
    xp = array_module(scores, positions)
    shares = xp.empty(scores.shape, dtype)
    config = configs.softmax_config(columns, configs.dtype_code(dtype))
    kernel = kernels.load("softmax", config, xp)
    kernel(
        (len(scores) * rows,), config.THREADS, aligned(scores), positions, shares, positions.shape[1],
        chunk.pairs.start, kv_heads, chunk.queries.start, rows, rep, chunk.keys.start, columns,
        chunk.keys.stop if window is None else min(window, chunk.keys.stop), scale, smem_bytes=config.smem_bytes,
    )  # fmt: skip
    return shares
