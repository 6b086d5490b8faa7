"""Attention of new tokens to their sequences: rotation, the cache's append, softmax(scale q k^T) v.

On a GPU two kernels and two products of cuBLAS: rotate_qkv puts queries, keys and values where the products read them,
cuBLAS writes float32 scores, softmax makes them probabilities, and cuBLAS multiplies those by the values. Scores pass
through memory; cuDNN's fused attention would save that, but its wheels are 700 MB and need a package of their own.
Float32 activations, head dimensions that are no multiple of 16, ranks whose heads share keys unevenly, and NumPy
arrays take the formulas in ref_transformer.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from . import configs, kernels
from . import ref_transformer as ref
from .array import Array, array_module, bfloat16, check_array
from .cache import KEYS_ALIGN, Batch, Kept
from .configs import ceil_div
from .cublas import batched_product

# cos and sin of each token's angles, (M, head_dim / 2) float32; None without rotation
Angles = tuple[Array, Array] | None

# Scores are computed for so many queries at a time that they take at most this: they stay in the L2 of an A100
# (40 MiB) or H100 (50 MiB). One query of each sequence at least.
SCORE_BYTES = 32 << 20


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
    return batch.unpad(y.swapaxes(1, 2).reshape(*batch.positions.shape, H * D))


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
    cosines, sines = (None, None) if angles is None else angles
    config = configs.RotateConfig(configs.dtype_code(qkv.dtype))
    kernel = kernels.load("rotate_qkv", config, xp)
    kernel(
        config.grid(qkv.size), config.THREADS, qkv, cosines, sines, batch.places, batch.query_positions,
        q, kept.keys, kept.values, M, T, length, KV, rep, D,
    )  # fmt: skip
    return q


def _attend(q: Array, kept: Kept, batch: Batch, scale: float, window: int | None) -> Array:
    """softmax(scale q k^T) v; q and the result (batch, KV, T, rep, D)."""
    xp = array_module(q)
    B, KV, T, rep, D = q.shape
    y = xp.empty_like(q)
    queries, results = q.reshape(B * KV, T * rep, D), y.reshape(B * KV, T * rep, D)
    keys, values = kept.keys.reshape(B * KV, -1, D), kept.values.reshape(B * KV, -1, D)
    for some, seen in _chunks(batch.positions, B * KV * rep, window):
        rows = slice(some.start * rep, some.stop * rep)
        scores = xp.empty((B * KV, rows.stop - rows.start, seen.stop - seen.start), np.float32)
        batched_product(queries[:, rows], keys[:, seen].swapaxes(1, 2), scores)
        shares = softmax(scores, batch.query_positions, some.start, seen.start, KV, rep, scale, window, q.dtype)
        batched_product(shares, values[:, seen], results[:, rows])
    return y


def _chunks(positions: np.ndarray, rows: int, window: int | None) -> Iterator[tuple[slice, slice]]:
    """Some of the queries at a time, and the keys that they see: so many that `rows` of scores fit SCORE_BYTES."""
    T, align = positions.shape[1], KEYS_ALIGN
    step = max(1, SCORE_BYTES // (4 * rows * ceil_div(int(positions.max()) + 1, align) * align))
    for start in range(0, T, step):
        some = slice(start, min(start + step, T))
        own = positions[:, some]
        own = own[own >= 0]
        first = 0 if window is None else max(0, int(own.min()) - window + 1)
        yield some, slice(first // align * align, ceil_div(int(own.max()) + 1, align) * align)


def softmax(
    scores: Array,
    positions: Array,
    first_query: int,
    first_key: int,
    kv_heads: int,
    rep: int,
    scale: float,
    window: int | None,
    dtype: np.dtype,
) -> Array:
    """exp(scale * scores) / sum over the keys that a query sees, 0 for the others: probabilities, as scores' shape.

    scores     (batch * kv_heads, queries * rep, columns) float32, columns a multiple of 8; of the queries from
               first_query on and the keys from first_key on
    positions  (batch, T) int32 of all queries; -1 for one that does not exist, and whose row becomes zero
    dtype      of the probabilities: float16 or bfloat16

    Deterministic.
    """
    check_array("scores", scores, ("pairs", "rows", "columns"), np.float32)
    check_array("positions", positions, ("batch", "T"), np.int32)
    xp = array_module(scores, positions)
    pairs, rows, columns = scores.shape
    if columns % 8:
        raise ValueError(f"scores must have a multiple of 8 columns, got {columns}")
    shares = xp.empty(scores.shape, dtype)
    config = configs.softmax_config(columns, configs.dtype_code(dtype))
    sight = first_key + columns if window is None else min(window, first_key + columns)
    kernel = kernels.load("softmax", config, xp)
    kernel(
        (pairs * rows,), config.THREADS, scores, positions, shares, positions.shape[1], first_query, rows // rep,
        kv_heads, rep, first_key, columns, sight, scale, smem_bytes=config.smem_bytes,
    )  # fmt: skip
    return shares
