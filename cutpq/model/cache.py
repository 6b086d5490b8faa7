"""The key/value cache of several sequences, and the new tokens that a call appends to it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np

from ..array import Array, array_module, to_numpy
from ..ops.score_chunks import aligned_keys


class Cache:
    """The key/value cache of some sequences; Transformer.new_cache makes one.

    length   most tokens that a sequence can have
    lengths  (batch,) int64 tokens that each sequence has so far, in host memory
    layers   keys and values of each layer

    Raises ValueError for a batch or length below 1.
    """

    def __init__(self, batch: int, length: int, heads: list[int], head_dim: int, dtype: np.dtype, xp: ModuleType):
        if batch < 1 or length < 1:
            raise ValueError(f"a cache needs batch >= 1 and length >= 1, got batch={batch}, length={length}")
        self.length = length
        self.lengths = np.zeros(batch, np.int64)
        self.layers = [LayerCache(xp, batch, n, length, head_dim, dtype) for n in heads]

    def clear(self) -> None:
        """Forget all tokens."""
        self.lengths[:] = 0
        for layer in self.layers:
            layer.keys[:] = layer.values[:] = 0  # attention reads beyond a sequence's end: no NaN may stay there

    def remove(self, sequence: int) -> None:
        """Forget one sequence, whose number the last one takes. Nothing is allocated, and no other sequence moves."""
        last = len(self.lengths) - 1
        for layer in self.layers:
            if sequence != last:
                layer.keys[sequence], layer.values[sequence] = layer.keys[last], layer.values[last]
            layer.keys, layer.values = layer.keys[:last], layer.values[:last]
        self.lengths[sequence] = self.lengths[last]
        self.lengths = self.lengths[:last]


class LayerCache:
    """Keys and values of one layer, (batch, heads, length, head_dim) each: the keys of a head are one matrix.

    heads   key/value heads of this rank
    length  is rounded up to a multiple of score_chunks.KEYS_ALIGN

    Beyond a sequence's end there are zeros, or keys of a sequence that was cleared.
    """

    def __init__(self, xp: ModuleType, batch: int, heads: int, length: int, head_dim: int, dtype: np.dtype):
        shape = batch, heads, aligned_keys(length), head_dim
        self.keys, self.values = xp.zeros(shape, dtype), xp.zeros(shape, dtype)

    def extend(self, k: Array, v: Array, batch: Batch) -> tuple[Array, Array]:
        """Append keys and values (M, heads, D) of the new tokens; returns views of all up to the last of them."""
        where = batch.sequences, batch.token_positions
        self.keys.swapaxes(1, 2)[where] = k
        self.values.swapaxes(1, 2)[where] = v
        seen = batch.last + 1
        return self.keys[:, :, :seen], self.values[:, :, :seen]


@dataclass(frozen=True)
class Batch:
    """New tokens of several sequences, M in all, one sequence after the other.

    In host memory:
    counts     (batch,) new tokens of each sequence; T is the largest count
    positions  (batch, T) int32, each token's place in its sequence; -1 where a sequence has fewer than T tokens

    Where the rank computes:
    tokens           (M,) integers
    sequences        (M,) which sequence each token belongs to
    token_positions  (M,) its place in it
    query_positions  (batch, T) int32, as positions
    places           (M,) int32, each token's index among the batch * T of (batch, T); None where every count is T
    """

    counts: np.ndarray
    positions: np.ndarray
    tokens: Array
    sequences: Array
    token_positions: Array
    query_positions: Array
    places: Array | None

    @classmethod
    def of(cls, tokens: Any, cache: Cache, vocabulary: int, xp: ModuleType) -> Batch:
        """From what a caller passes to Transformer.

        Raises ValueError for a token out of range, for rows that are no integers, and for a cache that is full or of
        another number of sequences.
        """
        rows = [token_row(row, i) for i, row in enumerate(tokens)]
        counts = np.array([len(row) for row in rows])
        _check_room(counts, cache)
        flat = _check_vocabulary(np.concatenate(rows), vocabulary)
        T = int(counts.max())
        positions = (cache.lengths[:, None] + np.arange(T)).astype(np.int32)
        sequences, token_positions, places = np.arange(len(rows)).repeat(counts), positions.reshape(-1), None
        if T * len(rows) > len(flat):
            new = np.arange(T) < counts[:, None]  # (batch, T)
            positions[~new] = -1
            token_positions, places = positions[new], xp.asarray(np.flatnonzero(new).astype(np.int32))
        return cls(
            counts=counts,
            positions=positions,
            tokens=xp.asarray(flat),
            sequences=xp.asarray(sequences),
            token_positions=xp.asarray(token_positions),
            query_positions=xp.asarray(positions),
            places=places,
        )

    @cached_property
    def last(self) -> int:
        """The last position of all tokens."""
        return int(self.positions.max())

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


def decode_tokens(tokens: Any, cache: Cache, vocabulary: int, xp: ModuleType) -> Array:
    """One token for each sequence, (batch,) integers, checked against the cache and the vocabulary.

    Those in host memory come back as NumPy's. Those on the GPU stay there, and their values are not checked, as that
    would wait for the GPU. Raises ValueError for a token out of range, for another shape, and for a full cache.
    """
    on_gpu = xp is not np and isinstance(tokens, xp.ndarray)
    row = tokens if on_gpu else token_row(tokens, None)
    if row.ndim != 1 or row.dtype.kind not in "iu":
        raise ValueError(f"tokens must be a row of integers, got {row.dtype} of shape {row.shape}")
    _check_room(np.ones(len(row), np.int64), cache)
    return row if on_gpu else _check_vocabulary(row, vocabulary)


def _check_vocabulary(tokens: np.ndarray, vocabulary: int) -> np.ndarray:
    wrong = (tokens < 0) | (tokens >= vocabulary)
    if wrong.any():
        raise ValueError(f"token {tokens[wrong][0]} is out of range: the vocabulary is 0 .. {vocabulary - 1}")
    return tokens


def token_row(row: Any, i: int | None) -> np.ndarray:
    """The tokens of sequence i, or of all, as (n,) int64 in host memory; ValueError for what is no row of integers."""
    row = to_numpy(row) if hasattr(row, "dtype") else np.asarray(row)
    if row.ndim != 1 or row.dtype.kind not in "iu" or not len(row):
        raise ValueError(
            f"tokens{'' if i is None else f' of sequence {i}'} must be a row of one integer or more, "
            f"got {row.dtype} of shape {row.shape}"
        )
    return row.astype(np.int64)


def _check_room(counts: np.ndarray, cache: Cache) -> None:
    if len(counts) != len(cache.lengths):
        raise ValueError(f"tokens of {len(counts)} sequences do not fit a cache of {len(cache.lengths)}")
    full = cache.lengths + counts > cache.length
    if full.any():
        i = int(full.argmax())
        raise ValueError(
            f"the cache is full: sequence {i} has {cache.lengths[i]} tokens, {counts[i]} more do not fit its "
            f"length of {cache.length}"
        )
