"""New tokens of several sequences, and the keys and values that are kept of the old ones."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from ..array import Array, array_module, ceil_div, to_numpy

# Keys are multiplied and read by so many at a time, a 16-byte word of their probabilities.
KEYS_ALIGN = 8


class Cache:
    """Keys and values of some sequences, in each layer for so many heads of this rank; see Transformer.new_cache.

    lengths  (batch,) tokens of each sequence so far, in host memory
    length   most that a sequence can have
    """

    def __init__(self, batch: int, length: int, heads: list[int], head_dim: int, dtype: np.dtype, xp: ModuleType):
        if batch < 1 or length < 1:
            raise ValueError(f"a cache needs batch >= 1 and length >= 1, got batch={batch}, length={length}")
        self.length = length
        self.lengths = np.zeros(batch, np.int64)
        self.layers = [Kept(xp, batch, n, length, head_dim, dtype) for n in heads]

    def clear(self) -> None:
        """Forget all tokens."""
        self.lengths[:] = 0
        for layer in self.layers:
            layer.keys[:] = layer.values[:] = 0  # what lies beyond a sequence's end must be finite


class Kept:
    """Keys and values of one layer: (batch, heads, length, head_dim), so that those of a head are one matrix.

    heads   key/value heads of this rank
    length  rounded up to a multiple of KEYS_ALIGN: what lies beyond a sequence's end is zero, or some old key
    """

    def __init__(self, xp: ModuleType, batch: int, heads: int, length: int, head_dim: int, dtype: np.dtype):
        shape = batch, heads, ceil_div(length, KEYS_ALIGN) * KEYS_ALIGN, head_dim
        self.keys, self.values = xp.zeros(shape, dtype), xp.zeros(shape, dtype)

    def extend(self, k: Array, v: Array, batch: Batch) -> tuple[Array, Array]:
        """Put the new tokens' (M, heads, D) into their places; all that is kept up to the last of them."""
        self.keys.swapaxes(1, 2)[batch.at] = k
        self.values.swapaxes(1, 2)[batch.at] = v
        seen = int(batch.positions.max()) + 1
        return self.keys[:, :, :seen], self.values[:, :, :seen]


@dataclass(frozen=True)
class Batch:
    """New tokens of several sequences, M in all, one sequence after the other.

    tokens     (M,) int64, in host memory
    counts     (batch,) new tokens of each sequence, in host memory; T is the most
    positions  (batch, T) int32 in host memory, each token's place in its sequence; -1 where a sequence has fewer than T
    at         which sequence and which position each token has, 2 x (M,), where the rank computes
    places     (M,) int32 index of each token in (batch * T), where the rank computes; None where all have T
    query_positions  positions, where the rank computes
    """

    tokens: np.ndarray
    counts: np.ndarray
    positions: np.ndarray
    at: tuple[Array, Array]
    places: Array | None
    query_positions: Array

    @classmethod
    def of(cls, tokens: Any, cache: Cache, vocabulary: int, xp: ModuleType) -> Batch:
        """From what a caller passes, checked against the cache and the vocabulary."""
        rows = [_token_row(row, i) for i, row in enumerate(tokens)]
        counts = np.array([len(row) for row in rows])
        _check_room(counts, cache)
        flat = np.concatenate(rows)
        wrong = (flat < 0) | (flat >= vocabulary)
        if wrong.any():
            raise ValueError(f"token {flat[wrong][0]} is out of range: the vocabulary is 0 .. {vocabulary - 1}")
        new = np.arange(counts.max()) < counts[:, None]  # (batch, T)
        positions = np.where(new, cache.lengths[:, None] + np.arange(counts.max()), -1).astype(np.int32)
        at = xp.asarray(np.nonzero(new)[0]), xp.asarray(positions[new])
        places = None if new.all() else xp.asarray(np.flatnonzero(new).astype(np.int32))
        return cls(flat, counts, positions, at, places, xp.asarray(positions))

    def pad(self, q: Array) -> Array:
        """(M, ...) as (batch, T, ...), with zeros where a sequence has fewer than T."""
        if self.places is not None:
            q, flat = array_module(q).zeros((self.positions.size, *q.shape[1:]), q.dtype), q
            q[self.places] = flat
        return q.reshape(*self.positions.shape, *q.shape[1:])

    def unpad(self, y: Array) -> Array:
        """What `pad` made (batch, T, ...), as (M, ...) again."""
        flat = y.reshape(-1, *y.shape[2:])
        return flat if self.places is None else flat[self.places]


def _token_row(row: Any, i: int) -> np.ndarray:
    row = to_numpy(row) if hasattr(row, "dtype") else np.asarray(row)
    if row.ndim != 1 or row.dtype.kind not in "iu" or not len(row):
        raise ValueError(
            f"tokens of sequence {i} must be a row of one integer or more, got {row.dtype} of shape {row.shape}"
        )
    return row.astype(np.int64)


def _check_room(counts: np.ndarray, cache: Cache) -> None:
    if len(counts) != len(cache.lengths):
        raise ValueError(f"tokens of {len(counts)} sequences do not fit a cache of {len(cache.lengths)}")
    for i, (count, length) in enumerate(zip(counts, cache.lengths, strict=True)):
        if length + count > cache.length:
            raise ValueError(
                f"the cache is full: sequence {i} has {length} tokens, {count} more do not fit its "
                f"length of {cache.length}"
            )
