"""Norms, activations, rotation and softmax in float32 without needless copies; formulas.py says what they compute."""

from __future__ import annotations

import math

import numpy as np

from .. import formulas
from . import threads

# Numbers that a thread works through at a time: they stay in its core's cache from one step to the next.
_PIECE = 1 << 16


def norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, epsilon: float) -> np.ndarray:
    """RMSNorm of the rows of x, or LayerNorm with a bias; all float32."""
    if bias is not None:
        x = x - x.mean(axis=1, keepdims=True)
    squares = np.einsum("mk,mk->m", x, x)
    squares /= np.float32(x.shape[1])
    squares += np.float32(epsilon)
    np.sqrt(squares, out=squares)
    y = x / squares[:, None]
    y *= weight
    if bias is not None:
        y += bias
    return y


def activate(kind: str, gate: np.ndarray, up: np.ndarray | None = None) -> np.ndarray:
    """act(gate) * up, or act(gate); float32 (M, N), any strides. Raises ValueError for an unknown kind."""
    M, N = gate.shape
    y = np.empty((M, N), np.float32)
    step = max(1, _PIECE // max(1, N))

    def work(start: int) -> None:
        rows = slice(start, start + step)
        with np.errstate(over="ignore"):  # exp(-v) = inf gives the right limit, -0
            _activate(kind, gate[rows], y[rows])
        if up is not None:
            np.multiply(y[rows], up[rows], out=y[rows])

    threads.each(work, range(0, M, step))
    return y


def _activate(kind: str, v: np.ndarray, y: np.ndarray) -> None:
    if kind == "silu":  # v / (1 + exp(-v))
        np.negative(v, out=y)
        np.exp(y, out=y)
        y += np.float32(1)
        np.divide(v, y, out=y)
    elif kind == "gelu_tanh":  # v / 2 (1 + tanh(sqrt(2 / pi) (v + 0.044715 v^3)))
        np.multiply(v, v, out=y)
        y *= np.float32(0.044715 * math.sqrt(2 / math.pi))
        y += np.float32(math.sqrt(2 / math.pi))
        y *= v
        np.tanh(y, out=y)
        y += np.float32(1)
        y *= v
        y *= np.float32(0.5)
    else:
        y[...] = formulas.activate(kind, v)


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Rotary embedding of x (M, H, D) float32 by the angles of each token, cos and sin (M, D / 2)."""
    M, H, D = x.shape
    half = D // 2
    y = np.empty(x.shape, np.float32)
    step = max(1, _PIECE // (H * D))

    def work(start: int) -> None:
        rows = slice(start, start + step)
        piece, c, s = x[rows], cos[rows, None], sin[rows, None]
        crossed = np.empty(piece.shape, np.float32)  # (a, b) * cos + (-b, a) * sin, in rows as long as they can be
        np.multiply(piece[..., half:], -s, out=crossed[..., :half])
        np.multiply(piece[..., :half], s, out=crossed[..., half:])
        np.multiply(piece, np.concatenate([c, c], axis=2), out=y[rows])
        y[rows] += crossed

    threads.each(work, range(0, M, step))
    return y
