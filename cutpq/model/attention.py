"""Attention of new tokens to their sequences: rotate q and k, append k and v to the cache, softmax(scale q k^T) v.

One new token of each sequence on a GPU takes the kernels rotate_qkv and decode_attention. A prompt takes two
kernels and two products of cuBLAS: rotate_qkv puts queries, keys and values where the products read them, cuBLAS writes
float32 scores, softmax turns them into probabilities, and cuBLAS multiplies these by the values. Then CuPy rounds the
result and puts the heads of a token side by side. Scores pass through L2: cuDNN's fused attention would avoid that, but
its wheels have 700 MB.

Float32 activations, head dimensions that are no multiple of 16, ranks whose heads share keys unevenly, and NumPy
arrays take the formulas in formulas.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import ModuleType

import numpy as np

from ..array import Array, aligned, array_module, bfloat16, ceil_div, check_array, round_to, to_float32
from ..kernels import load as kernels
from ..kernels.config import Config, dtype_code
from ..ops.cublas import batched_product
from ..ops.engine import elementwise as engine
from ..ops.engine.attention import attention as engine_attention
from ..ops.engine.choice import uses_engine
from ..ops.score_chunks import Chunk, chunks
from . import formulas
from .cache import Batch, LayerCache
from .decode_attention import decode_attention
from .decode_attention import takes as decodes
from .formulas import Angles


@dataclass(frozen=True)
class RotateConfig(Config):
    """rotate_qkv."""

    DTYPE: int
    THREADS: int = 128

    def grid(self, n: int) -> tuple[int]:
        """A thread takes sixteen of n numbers."""
        return (ceil_div(n, 16 * self.THREADS),)


@dataclass(frozen=True)
class SoftmaxConfig(Config):
    """softmax: a block a row."""

    DTYPE: int
    THREADS: int

    @property
    def smem_bytes(self) -> int:
        """Shared memory: two rows of a float for every warp, both 16-byte aligned."""
        return 2 * ceil_div(self.THREADS // 32 * 4, 16) * 16


def softmax_config(columns: int, dtype: int) -> SoftmaxConfig:
    """One warp for short rows; in longer ones a thread takes eight columns about four times."""
    threads = 32 if columns <= 1024 else 128 if columns <= 8192 else 512
    return SoftmaxConfig(dtype, threads)


def attention(
    qkv: Array,
    angles: Angles | None,
    cache: LayerCache,
    batch: Batch,
    kv_of_head: np.ndarray,
    scale: float,
    window: int | None = None,
) -> Array:
    """softmax(scale q k^T) v of each new token and head, (M, H * D). Appends keys and values to the cache.

    qkv         (M, (H + 2 KV) * D): queries, keys and values of each token, head by head
    angles      by which queries and keys are rotated, see formulas.cos_and_sin
    cache       of this layer; it has KV heads of D features
    kv_of_head  (H,) the key/value head of each query head, in host memory
    scale       above 0
    window      a query sees at most this many keys, its own the last; None for all

    With float16 and bfloat16, sums are float32; q and k after rotation, probabilities and the result are rounded.
    Deterministic. A float32 cache takes qkv of any dtype where the engine for NumPy arrays computes. Raises ValueError
    for a shape or scale that does not fit, TypeError where qkv has another dtype than the cache otherwise.
    """
    _, KV, _, D = cache.keys.shape
    M, H = len(batch.tokens), len(kv_of_head)
    xp, held = array_module(qkv), cache.keys.dtype
    by_engine = uses_engine(xp)
    dtypes = (np.float16, bfloat16, np.float32) if by_engine and held == np.float32 else (held,)
    check_array("qkv", qkv, (M, (H + 2 * KV) * D), *dtypes)
    if not scale > 0:
        raise ValueError(f"scale must be above 0, got {scale}")
    if by_engine:
        return _by_engine(qkv, angles, cache, batch, kv_of_head, scale, window)
    if not has_kernels(qkv.dtype, D, kv_of_head, KV, xp):
        return _by_formula(qkv, angles, cache, batch, kv_of_head, scale, window)
    q = rotate_qkv(qkv, angles, cache, batch)
    if q.shape[2] == 1 and decodes(q.dtype, D, H // KV, xp):
        positions, last = batch.query_positions.reshape(-1), batch.last
        return decode_attention(q[:, :, 0], cache.keys, cache.values, positions, scale, window, max_keys=last + 1)
    y = _attend(q, cache, batch, scale, window)
    return batch.unpad(y.swapaxes(1, 2).astype(qkv.dtype, order="C").reshape(*batch.positions.shape, H * D))


def has_kernels(dtype: np.dtype, D: int, kv_of_head: np.ndarray, KV: int, xp: ModuleType) -> bool:
    """Whether attention of H query heads of D features over KV key/value heads is computed by kernels."""
    return kernels.usable(xp) and dtype.itemsize == 2 and D % 16 == 0 and _share_evenly(kv_of_head.tobytes(), KV)


@cache
def _share_evenly(kv_of_head: bytes, KV: int) -> bool:
    """Whether each of KV key/value heads in turn serves equally many query heads. kv_of_head int64."""
    numbers = np.frombuffer(kv_of_head, np.int64)
    rep, uneven = divmod(len(numbers), KV)
    return not uneven and np.array_equal(numbers, np.arange(len(numbers)) // rep)


def _by_formula(
    qkv: Array,
    angles: Angles | None,
    cache: LayerCache,
    batch: Batch,
    kv_of_head: np.ndarray,
    scale: float,
    window: int | None,
) -> Array:
    xp = array_module(qkv)
    _, KV, _, D = cache.keys.shape
    heads = qkv.reshape(len(qkv), -1, D)
    q, k, v = heads[:, : -2 * KV], heads[:, -2 * KV : -KV], heads[:, -KV:]
    if angles is not None:
        q, k = formulas.rotate(q, *angles), formulas.rotate(k, *angles)
    keys, values = cache.extend(k, v, batch)
    y = formulas.attention(batch.pad(q), keys, values, batch.positions, xp.asarray(kv_of_head), scale, window)
    return batch.unpad(y).reshape(len(qkv), -1)


def _by_engine(
    qkv: Array,
    angles: Angles | None,
    cache: LayerCache,
    batch: Batch,
    kv_of_head: np.ndarray,
    scale: float,
    window: int | None,
) -> Array:
    _, KV, _, D = cache.keys.shape
    heads = to_float32(qkv).reshape(len(qkv), -1, D)
    rotated, v = heads[:, :-KV], heads[:, -KV:]
    if angles is not None:
        rotated = engine.rotate(rotated, *angles.of_heads(rotated.shape[1]))
    k = round_to(rotated[:, -KV:], qkv.dtype)
    if cache.keys.dtype == np.float32:
        keys, values = cache.extend(to_float32(k), v, batch)
    else:
        keys, values = map(to_float32, cache.extend(k, round_to(v, qkv.dtype), batch))
    if not _share_evenly(kv_of_head.tobytes(), KV):
        keys, values = keys[:, kv_of_head], values[:, kv_of_head]
    y = engine_attention(batch.pad(rotated[:, :-KV]), keys, values, batch.positions, scale, window)
    return round_to(batch.unpad(y), qkv.dtype).reshape(len(qkv), -1)


def rotate_qkv(qkv: Array, angles: Angles | None, cache: LayerCache, batch: Batch) -> Array:
    """Queries, rotated, as (batch, KV, T, H / KV, D); appends keys, rotated, and values to the cache.

    qkv  (M, (H + 2 KV) * D) float16 or bfloat16, D a multiple of 16 and H of KV; head h of the queries has the
         key/value head h * KV // H

    Where a sequence has fewer than T new tokens, its missing queries are zero. Raises ValueError for another D or H,
    TypeError for another dtype.
    """
    (B, KV, length, D), T = cache.keys.shape, batch.positions.shape[1]
    check_array("qkv", qkv, ("M", "(H + 2 KV) * D"), np.float16, bfloat16)
    M, N = qkv.shape
    if D % 16 or N % (KV * D):
        raise ValueError(f"D must be a multiple of 16 and H of KV={KV}, got D={D} and {N} columns of qkv")
    xp, rep = array_module(qkv, cache.keys), N // (KV * D) - 2
    q = (xp.empty if batch.places is None else xp.zeros)((B, KV, T, rep, D), qkv.dtype)
    cosines, sines = (None, None) if angles is None else map(aligned, angles)
    launch = _rotation(xp, qkv.dtype, M, T, length, KV, rep, D)
    launch(aligned(qkv), cosines, sines, batch.places, batch.query_positions, q, cache.keys, cache.values)
    return q


@kernels.kept
def _rotation(
    xp: ModuleType, dtype: np.dtype, M: int, T: int, length: int, KV: int, rep: int, D: int
) -> kernels.Launch:
    config = RotateConfig(dtype_code(dtype))
    kernel = kernels.load("rotate_qkv", config, xp)
    return kernel.settled(config.grid(M * (rep + 2) * KV * D), config.THREADS, M, T, length, KV, rep, D)


def _attend(q: Array, cache: LayerCache, batch: Batch, scale: float, window: int | None) -> Array:
    """softmax(scale q k^T) v in float32; q and the result (batch, KV, T, rep, D)."""
    xp = array_module(q)
    B, KV, T, rep, D = q.shape
    y = xp.empty(q.shape, np.float32)
    queries, results = q.reshape(B * KV, T * rep, D), y.reshape(B * KV, T * rep, D)
    keys, values = cache.keys.reshape(B * KV, -1, D), cache.values.reshape(B * KV, -1, D)
    for chunk in chunks(batch.positions, B * KV, rep, window):
        pairs, rows, seen = chunk.pairs, slice(chunk.queries.start * rep, chunk.queries.stop * rep), chunk.keys
        scores = xp.empty(chunk.shape(rep), np.float32)
        batched_product(queries[pairs, rows], keys[pairs, seen].swapaxes(1, 2), scores)
        probabilities = softmax(scores, batch.query_positions, chunk, KV, scale, window, q.dtype)
        batched_product(probabilities, values[pairs, seen], results[pairs, rows])
    return y


def softmax(
    scores: Array, positions: Array, chunk: Chunk, kv_heads: int, scale: float, window: int | None, dtype: np.dtype
) -> Array:
    """Probabilities, of scores' shape: exp(scale * scores) / sum over the keys that a query sees, 0 for the others.

    scores     (pairs, queries * rep, keys) float32 of a chunk; a multiple of 8 keys
    positions  (batch, T) int32 of all queries; -1 for one that does not exist, and whose row becomes zero
    kv_heads   key/value heads of each sequence
    dtype      of the probabilities: float16 or bfloat16

    Deterministic. Raises ValueError for a shape that does not fit, TypeError for another dtype.
    """
    rows, columns = scores.shape[1:]
    rep = rows // (chunk.queries.stop - chunk.queries.start)
    check_array("scores", scores, chunk.shape(rep), np.float32)
    check_array("positions", positions, ("batch", "T"), np.int32)
    if columns % 8:
        raise ValueError(f"scores must be of a multiple of 8 keys, got {columns}")
    xp = array_module(scores, positions)
    probabilities = xp.empty(scores.shape, dtype)
    config = softmax_config(columns, dtype_code(dtype))
    kernel = kernels.load("softmax", config, xp)
    kernel(
        (len(scores) * rows,), config.THREADS, aligned(scores), positions, probabilities, positions.shape[1],
        chunk.pairs.start, kv_heads, chunk.queries.start, rows, rep, chunk.keys.start, columns,
        chunk.keys.stop if window is None else min(window, chunk.keys.stop), scale, smem_bytes=config.smem_bytes,
    )  # fmt: skip
    return probabilities
