"""softmax(scale q k^T) v in float32: grouped heads as one product, queries in blocks whose scores fit the cache."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from . import threads

# Scores that a thread has at a time: of 8 heads, 64 queries and 512 keys, twice. With fewer a step is so short that
# threads wait for each other's Python in between.
_SCORES = 1 << 19

# So few rows a BLAS multiplies sooner one by one, as vectors: for a matrix it would first copy the keys.
_VECTORS = 3

# Fewer queries than this at a time would read the keys too often. Of more than that, too many would see half of a
# square of scores: those above the diagonal are computed and hidden.
_FEWEST, _MOST = 32, 64


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
    own = np.maximum(positions, 0)
    queries = np.empty((B, KV, T, rep, D), np.float32)
    np.multiply(q.reshape(B, T, KV, rep, D).swapaxes(1, 2), np.float32(scale), out=queries)
    y = np.empty((B, KV, T, rep, D), np.float32)

    def work(piece: tuple[slice, slice, slice]) -> None:
        sequences, heads, rows = piece
        where = own[sequences, rows]
        first = 0 if window is None else max(0, int(where.min()) - window + 1)
        keys = slice(first, int(where.max()) + 1)
        block = queries[sequences, heads, rows]
        shape = (*block.shape[:2], -1, D)
        scores = _products(block.reshape(shape), k[sequences, heads, keys].swapaxes(2, 3))
        _hide(scores.reshape(*block.shape[:4], -1), where, keys, window)
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        total = scores.sum(axis=-1, keepdims=True)
        found = _products(scores, v[sequences, heads, keys])
        found /= total
        y[sequences, heads, rows] = found.reshape(block.shape)

    threads.each(work, _pieces(B, KV, T, rep, k.shape[2]))
    return y.swapaxes(1, 2).reshape(B, T, H, D)


def _products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a @ b of every sequence and head."""
    rows = a.shape[2]
    if rows > _VECTORS:
        return np.matmul(a, b)
    y = np.empty((*a.shape[:3], b.shape[3]), np.float32)
    for row in range(rows):
        np.matmul(a[:, :, row : row + 1], b, out=y[:, :, row : row + 1])
    return y


def _pieces(B: int, KV: int, T: int, rep: int, S: int) -> Iterator[tuple[slice, slice, slice]]:
    """Sequences, key/value heads and queries of one piece of work, each query and head once."""
    if B * KV * T * rep * S <= _SCORES:
        yield slice(0, B), slice(0, KV), slice(0, T)
        return
    step = min(max(_FEWEST, _SCORES // (rep * S)), _MOST)
    heads = max(1, _SCORES // (min(step, T) * rep * S))
    for sequence in range(B):
        for start in range(0, T, step):
            for head in range(0, KV, heads):
                yield slice(sequence, sequence + 1), slice(head, head + heads), slice(start, min(start + step, T))


def _hide(scores: np.ndarray, own: np.ndarray, keys: slice, window: int | None) -> None:
    """-Inf, in place, for keys that a query does not see; scores (b, heads, T, rep, keys), own (b, T) positions."""
    first = keys.start if window is not None else int(own.min()) + 1
    key = np.arange(first, keys.stop)
    hidden = key > own[..., None]
    if window is not None:
        hidden |= key <= own[..., None] - window
    if hidden.size:
        np.copyto(scores[..., first - keys.start :], np.float32(-np.inf), where=hidden[:, None, :, None])
