"""Norms, activations, rotation and softmax in float32 without needless copies; formulas.py says what they compute."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ...array import round_to, to_float32
from .. import formulas
from . import threads

# Numbers that a thread works through at a time: they stay in its core's cache from one step to the next.
_PIECE = 1 << 16


def each_rows(work: Callable[[slice], object], M: int, columns: int) -> None:
    """work(rows) for pieces of M rows, shared among the threads."""
    step = max(1, _PIECE // max(1, columns))
    threads.each(work, [slice(start, start + step) for start in range(0, M, step)])


def take(x: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """x[:, columns], row by row: in a sixth of the time of that expression."""
    M, N = len(x), len(columns)
    if M * N <= _PIECE:
        return x.take(columns, axis=1)
    y = np.empty((M, N), x.dtype)

    def work(rows: slice) -> None:
        y[rows] = x[rows].take(columns, axis=1)

    each_rows(work, M, N)
    return y


def residual_norm(
    total: np.ndarray | None,
    residual: np.ndarray,
    weight: np.ndarray,
    perm: np.ndarray,
    epsilon: float,
    bias: np.ndarray | None = None,
) -> np.ndarray:
    """As ops.residual_norm: residual += total, in place; its norm, columns permuted, in its dtype."""
    if residual.size > _PIECE and len(residual) > 1:
        y = np.empty(residual.shape, residual.dtype)

        def work(rows: slice) -> None:
            y[rows] = residual_norm(None if total is None else total[rows], residual[rows], weight, perm, epsilon, bias)

        each_rows(work, *y.shape)
        return y
    dtype = residual.dtype
    if total is not None and dtype == np.float32:
        residual += total
    elif total is not None:
        residual[...] = round_to(to_float32(residual) + to_float32(total), dtype)
    y = norm(to_float32(residual), to_float32(weight), None if bias is None else to_float32(bias), epsilon)
    return round_to(y.take(perm, axis=1), dtype)


def norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, epsilon: float) -> np.ndarray:
    """RMSNorm of the rows of x, or LayerNorm with a bias; all float32."""
    if bias is not None:
        x = x - x.mean(axis=1, keepdims=True)
    size = np.matmul(x[:, None], x[:, :, None])[:, 0]  # (M, 1): of each row the sum of squares, and then its root
    size /= np.float32(x.shape[1])
    size += np.float32(epsilon)
    np.sqrt(size, out=size)
    y = x / size
    y *= weight
    if bias is not None:
        y += bias
    return y


def activate(kind: str, gate: np.ndarray, up: np.ndarray | None = None) -> np.ndarray:
    """act(gate) * up, or act(gate); float32 (M, N), any strides. Raises ValueError for an unknown kind."""
    M, N = gate.shape
    y = np.empty((M, N), np.float32)

    def work(rows: slice) -> None:
        with np.errstate(over="ignore"):  # exp(-v) = inf gives the right limit, -0
            _activate(kind, gate[rows], y[rows])
        if up is not None:
            np.multiply(y[rows], up[rows], out=y[rows])

    each_rows(work, M, N)
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
    """Rotary embedding of x (M, H, D) float32; cos and sin of each token and head, as `spread` gives them."""
    M, H, D = x.shape
    y = np.empty((M, H, 2, D // 2), np.float32)
    halves = x.reshape(y.shape)

    def work(rows: slice) -> None:
        np.multiply(halves[rows], cos[rows], out=y[rows])
        y[rows] += halves[rows, :, ::-1] * sin[rows]

    each_rows(work, M, H * D)
    return y.reshape(x.shape)


def spread(cos: np.ndarray, sin: np.ndarray, H: int) -> tuple[np.ndarray, np.ndarray]:
    """What `rotate` multiplies the halves of H heads by, and what after they have changed places: cos and (-sin, sin).

    cos, sin  (M, D / 2) of each token's angles -> (M, H, 2, D / 2) each, in which NumPy's loops are as long as in x
    """
    both = np.empty((2, len(cos), H, 2, cos.shape[1]), np.float32)
    both[0] = cos[:, None, None]
    both[1] = np.stack([-sin, sin], axis=1)[:, None]
    return both[0], both[1]
