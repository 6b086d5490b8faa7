"""The formulas of attention, for NumPy and CuPy alike: rotation and softmax(scale q k^T) v.

All are computed in float32 and rounded once to the dtype of x.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from ..array import Array, array_module
from ..ops.engine.elementwise import spread

# Scores that attention computes at a time: few enough to stay in a CPU's cache, and keys that none of these queries
# sees are skipped.
_SCORES = 1 << 20


@dataclass(frozen=True)
class Angles:
    """cos and sin of each token's angles, (M, head_dim / 2) float32 each; unpacks as these two."""

    cos: Array
    sin: Array
    _of_heads: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, init=False)

    def __iter__(self) -> Iterator[Array]:
        return iter((self.cos, self.sin))

    def of_heads(self, H: int) -> tuple[np.ndarray, np.ndarray]:
        """Both as the engine multiplies H heads by them: made by the first layer, and kept for the others."""
        if H not in self._of_heads:
            self._of_heads[H] = spread(self.cos, self.sin, H)
        return self._of_heads[H]


def cos_and_sin(rope: Array | None, positions: Array) -> Angles | None:
    """cos and sin of positions[:, None] * rope, in float64 and rounded to float32; None for a model without rotation.

    rope (head_dim / 2,) float64, angle per position of each pair of features; positions (M,) integers
    """
    if rope is None:
        return None
    xp = array_module(positions)
    angle = positions[:, None] * xp.asarray(rope)
    return Angles(xp.cos(angle).astype(xp.float32), xp.sin(angle).astype(xp.float32))


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotary embedding: features i and i + D/2 of a head, as one complex number, times exp(i angle).

    x (M, H, D); cos, sin (M, D/2) float32, of each token's angles -> (M, H, D)
    """
    xp = array_module(x, cos, sin)
    half = x.shape[-1] // 2
    a, b = x[..., :half].astype(xp.float32), x[..., half:].astype(xp.float32)
    cos, sin = cos[:, None], sin[:, None]
    return xp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def softmax(scores: Array, hidden: Array) -> Array:
    """exp(scores) / sum along the last axis, over the scores that are not hidden; 0 for those that are.

    scores float32, changed in place; hidden bool, of a shape that broadcasts to theirs
    """
    xp = array_module(scores, hidden)
    scores = xp.where(hidden, np.float32(-np.inf), scores)
    largest = scores.max(axis=-1, keepdims=True)
    scores -= xp.where(largest == -np.inf, np.float32(0), largest)
    xp.exp(scores, out=scores)
    # The largest score alone gives exp(0) = 1, so that the maximum only changes sums of rows that are all hidden.
    scores /= xp.maximum(scores.sum(axis=-1, keepdims=True), np.float32(1))
    return scores


def attention(
    q: Array, k: Array, v: Array, positions: np.ndarray, kv_of_head: Array, scale: float, window: int | None = None
) -> Array:
    """softmax(scale q k^T) v for each head, where a query at position p sees the keys at positions 0 .. p.

    q           (B, T, H, D)
    k, v        (B, KV, S, D), the key at position s being k[:, :, s]; beyond the last position any finite values
    positions   (B, T) integers in host memory, each below S; a query at -1 sees nothing, and gets 0
    kv_of_head  (H,) the key/value head of each query head
    window      a query sees at most this many keys, its own the last; None for all
    -> (B, T, H, D)
    """
    xp = array_module(q, k, v, kv_of_head)
    B, T, H, _ = q.shape
    queries = xp.moveaxis(q.astype(xp.float32) * np.float32(scale), 2, 1)
    keys, values = (a[:, kv_of_head].astype(xp.float32) for a in (k, v))
    out = xp.empty_like(queries)
    own = xp.asarray(positions)[:, :, None]
    step = max(1, _SCORES // (B * H * k.shape[2]))
    for t in range(0, T, step):
        rows = slice(t, t + step)
        seen = int(positions[:, rows].max()) + 1
        distance = own[:, rows] - xp.arange(seen)
        hidden = (distance < 0) if window is None else (distance < 0) | (distance >= window)
        scores = queries[:, :, rows] @ keys[:, :, :seen].swapaxes(-1, -2)
        out[:, :, rows] = softmax(scores, hidden[:, None]) @ values[:, :, :seen]
    return xp.moveaxis(out, 1, 2).astype(q.dtype)


def decode_attention(
    q: Array, keys: Array, values: Array, positions: Array, scale: float, window: int | None = None
) -> Array:
    """softmax(scale q k^T) v of one query token a sequence, of all query heads side by side.

    q             (B, KV, rep, D); query heads kv * rep ... of key/value head kv
    keys, values  (B, KV, length, D) finite
    positions     (B,) int32, where q is: sequence b attends to keys 0 ... positions[b]; -1 for no token, whose row is 0
    window        a query attends to at most this many keys, its own the last; None for all
    -> (B, KV * rep * D), computed in float32 and rounded once to q's dtype
    """
    xp = array_module(q, keys, values, positions)
    distance = positions[:, None] - xp.arange(keys.shape[2])
    hidden = (distance < 0) if window is None else (distance < 0) | (distance >= window)
    queries = q.astype(xp.float32) * np.float32(scale)
    scores = queries @ keys.astype(xp.float32).swapaxes(-1, -2)
    y = softmax(scores, hidden[:, None, None]) @ values.astype(xp.float32)
    return y.astype(q.dtype).reshape(len(q), -1)
