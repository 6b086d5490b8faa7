"""softmax(scale q k^T) v in float32: grouped heads as one product, queries in blocks whose scores fit the cache."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from . import few_rows, threads

# Scores that a thread has at a time: of 8 heads, 64 queries and 512 keys, twice. With fewer a step is so short that
# threads wait for each other's Python in between.
_SCORES = 1 << 19

# Queries of a piece. With fewer, keys are read too often, and threads wait for each other's Python. With more, the
# first of them see too few of the keys that the last one sees: scores above the diagonal are computed and hidden.
_QUERIES = 64

# Numbers among the keys of a few queries that are worth a thread: of 64 heads, 256 keys of 32 features.
_KEYS = 1 << 19

# So few rows a BLAS without kernels for small matrices multiplies sooner one by one, as vectors: for a matrix it would
# first copy the keys.
_VECTORS = 3

# Up to so many rows of q, keys @ q^T is quicker than q @ keys^T where only the first is a product for such a kernel.
_FROM_THE_RIGHT = 32


def attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, positions: np.ndarray, scale: float, window: int | None = None
) -> np.ndarray:
    """As model.formulas.attention, for query heads that share key/value heads evenly. (B, T, H, D) float32.

    q          (B, T, H, D) float32, H a multiple of KV: head h has the key/value head h * KV // H
    k, v       (B, KV, S, D) float32; finite beyond a sequence's end
    positions  (B, T) of the queries; a row of -1 gets any finite numbers
    """
    B, T, H, D = q.shape
    KV = k.shape[1]
    rep = H // KV
    queries = q.reshape(B, T, KV, rep, D).swapaxes(1, 2)
    y = np.empty((B, T, KV, rep, D), np.float32)
    ones = np.ones((k.shape[2], 1), np.float32)

    def work(piece: tuple[slice, slice, slice]) -> None:
        sequences, heads, rows = piece
        where = positions[sequences, rows]
        nearest, last = int(where.min()), max(0, int(where.max()))
        keys = slice(0 if window is None else max(0, nearest - window + 1), last + 1)
        found = y.swapaxes(1, 2)[sequences, heads, rows]
        b, n, t = found.shape[:3]
        block = np.empty((b, n, t * rep, D), np.float32)
        np.multiply(queries[piece], np.float32(scale), out=block.reshape(found.shape))
        scores = _scores(block, k[sequences, heads, keys])
        if window is not None or nearest != last:
            _hide(scores.reshape(b, n, t, rep, -1), np.maximum(where, 0), keys, window)
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        total = np.matmul(scores, ones[: scores.shape[3]])  # in a third of the time of `sum`
        sums = _products(scores, v[sequences, heads, keys], few_rows.is_small(t * rep, scores.shape[3], D))
        np.divide(sums.reshape(found.shape), total.reshape(b, n, t, rep, 1), out=found)

    threads.each(work, _pieces(B, KV, T, rep, D, k.shape[2]))
    return y.reshape(B, T, H, D)


def _scores(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """q k^T of every sequence and head, (b, heads, rows, keys)."""
    (rows, D), keys = q.shape[2:], k.shape[2]
    is_small = few_rows.is_small_transposed(rows, D, keys)
    if not is_small and 1 < rows <= _FROM_THE_RIGHT and few_rows.is_small(keys, D, rows):
        by_key = np.matmul(k, np.ascontiguousarray(q.swapaxes(2, 3)))
        return np.ascontiguousarray(by_key.swapaxes(2, 3))
    return _products(q, k.swapaxes(2, 3), is_small)


def _products(a: np.ndarray, b: np.ndarray, is_small: bool) -> np.ndarray:
    """a @ b of every sequence and head.

    is_small  whether the BLAS multiplies these matrices without copying them
    """
    if is_small or a.shape[2] > _VECTORS:
        return np.matmul(a, b)
    return np.matmul(a[..., None, :], b[:, :, None])[..., 0, :]


def _pieces(B: int, KV: int, T: int, rep: int, D: int, S: int) -> Iterator[tuple[slice, slice, slice]]:
    """Sequences, key/value heads and queries of one piece of work, each query and head once.

    The last queries see the most keys: they come first, so that no thread is left with a large piece at the end.
    """
    if B * KV * T * rep * S <= _SCORES:
        parts = max(1, min(B, threads.limit(), B * KV * S * D // _KEYS))
        for part in range(parts):
            yield slice(B * part // parts, B * (part + 1) // parts), slice(0, KV), slice(0, T)
        return
    heads = max(1, _SCORES // (min(_QUERIES, T) * rep * S))
    for start in reversed(range(0, T, _QUERIES)):
        for sequence in range(B):
            for head in range(0, KV, heads):
                yield slice(sequence, sequence + 1), slice(head, head + heads), slice(start, start + _QUERIES)


def _hide(scores: np.ndarray, own: np.ndarray, keys: slice, window: int | None) -> None:
    """-Inf, in place, for keys that a query does not see; scores (b, heads, T, rep, keys), own (b, T) positions."""
    first = keys.start if window is not None else int(own.min()) + 1
    key = np.arange(first, keys.stop)
    hidden = key > own[..., None]
    if window is not None:
        hidden |= key <= own[..., None] - window
    np.copyto(scores[..., first - keys.start :], np.float32(-np.inf), where=hidden[:, None, :, None])
