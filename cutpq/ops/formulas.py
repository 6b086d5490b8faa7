"""The formula of every kernel, for NumPy and CuPy alike: the specification, and what runs on the CPU.

Written for the eye: each function is its formula. Sums are taken in float64, where a product of two float16 numbers
is exact; a kernel that sums in float32 differs from these results by its own rounding and by nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..array import Array, array_module

# Columns are dequantized and multiplied in pieces of about this many weights, so that the float64 copy stays small.
_PIECE = 1 << 22

# The activations by their names in Hugging Face configs.
ACTIVATIONS = ("silu", "gelu", "gelu_tanh")


def dequant(codes: Array, scales: Array, zeros: Array, g_idx: Array, dtype: Any = np.float16) -> Array:
    """w[k, n] = (codes[k, n] - zeros[g_idx[k], n]) * scales[g_idx[k], n], in float32, rounded once to dtype.

    codes (K, N) uint8, scales (G, N) float16 or float32, zeros (G, N) uint8, g_idx (K,) int32 -> (K, N) dtype
    """
    xp = array_module(codes)
    difference = codes.astype(xp.int16) - zeros.astype(xp.int16)[g_idx]
    with np.errstate(over="ignore"):  # a weight beyond dtype's range is inf, as on the GPU
        return (difference.astype(xp.float32) * scales.astype(xp.float32)[g_idx]).astype(dtype)


def gemm(x: Array, codes: Array, scales: Array, zeros: Array, g_idx: Array, bias: Array | None = None) -> Array:
    """y = x @ dequant(codes, scales, zeros, g_idx) + bias, rounded once to the dtype of x.

    x (M, K) float16, bfloat16 or float32; the weights are rounded to the same dtype, as they enter tensor cores, but
    to float16 where x is float32: what dequantizers of other libraries give -> (M, N)
    """
    dtype = np.float16 if x.dtype == np.float32 else x.dtype
    return _product(x, codes.shape, lambda n: dequant(codes[:, n], scales[:, n], zeros[:, n], g_idx, dtype), bias)


def gemm_plain(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """y = x @ weight + bias, rounded once to the dtype of x, to which the weights are rounded before.

    x (M, K) float16, bfloat16 or float32, weight (K, N) -> (M, N)
    """
    return _product(x, weight.shape, lambda n: weight[:, n].astype(x.dtype), bias)


def _product(x: Array, shape: tuple[int, int], columns: Callable[[slice], Array], bias: Array | None) -> Array:
    """x @ w + bias, where columns(n) gives the columns n of w."""
    xp = array_module(x)
    K, N = shape
    y = xp.empty((x.shape[0], N), x.dtype)
    x64 = x.astype(xp.float64)
    step = max(1, _PIECE // max(1, K))
    for n in range(0, N, step):
        piece = slice(n, min(n + step, N))
        total = x64 @ columns(piece).astype(xp.float64)
        if bias is not None:
            total += bias[piece].astype(xp.float64)
        with np.errstate(over="ignore"):
            y[:, piece] = total.astype(x.dtype)
    return y


def rmsnorm(x: Array, weight: Array, epsilon: float) -> Array:
    """x * weight / sqrt(mean(x^2) + epsilon) along the last axis, rounded once to the dtype of x."""
    xp = array_module(x, weight)
    x64 = x.astype(xp.float64)
    mean = (x64 * x64).mean(axis=-1, keepdims=True)
    return (x64 / xp.sqrt(mean + epsilon) * weight.astype(xp.float64)).astype(x.dtype)


def layer_norm(x: Array, weight: Array, bias: Array, epsilon: float) -> Array:
    """(x - mean(x)) / sqrt(var(x) + epsilon) * weight + bias along the last axis, in float32, rounded once."""
    xp = array_module(x, weight, bias)
    v = x.astype(xp.float32)
    v = v - v.mean(axis=-1, keepdims=True)
    scale = 1 / xp.sqrt((v * v).mean(axis=-1, keepdims=True) + np.float32(epsilon))
    return (v * scale * weight.astype(xp.float32) + bias.astype(xp.float32)).astype(x.dtype)


def activate(kind: str, gate: Array, up: Array | None = None) -> Array:
    """act(gate) * up, or act(gate) without `up`; in float32, rounded once to the dtype of gate.

    silu(v) = v / (1 + exp(-v));  gelu(v) = v/2 (1 + erf(v / sqrt 2));
    gelu_tanh(v) = v/2 (1 + tanh(sqrt(2/pi) (v + 0.044715 v^3)))
    """
    xp = array_module(gate, up)
    v = gate.astype(xp.float32)
    with np.errstate(over="ignore"):  # exp(-v) = inf gives the right limit, -0
        if kind == "silu":
            h = v / (1 + xp.exp(-v))
        elif kind == "gelu":
            h = v * (0.5 * (1 + _erf(v * np.float32(math.sqrt(0.5)))))
        elif kind == "gelu_tanh":
            h = v * (0.5 * (1 + xp.tanh(np.float32(math.sqrt(2 / math.pi)) * (v + np.float32(0.044715) * v**3))))
        else:
            raise ValueError(f"activation {kind!r} is not one of {', '.join(ACTIVATIONS)}")
        if up is not None:
            h = h * up.astype(xp.float32)
        return h.astype(gate.dtype)


def route(logits: np.ndarray, chosen: int) -> tuple[np.ndarray, np.ndarray]:
    """The `chosen` experts with the largest logits of each token, and the softmax over these alone.

    logits (M, experts) float32 -> experts (M, chosen) integers, the largest first, of equal ones the first; weights
    (M, chosen) float32, whose sum is 1. As Mixtral does it (arXiv 2401.04088, section 2.1).
    """
    experts = np.argsort(-logits, axis=1, kind="stable")[:, :chosen]
    found = np.take_along_axis(logits, experts, axis=1)
    weights = np.exp(found - found[:, :1])
    return experts, weights / weights.sum(axis=1, keepdims=True)


def _erf(v: Array) -> Array:
    if array_module(v) is not np:
        from cupyx.scipy.special import erf

        return erf(v)
    # NumPy has no erf. The C library's, element by element, is exact and fast enough for a reference.
    return np.array([math.erf(e) for e in v.ravel().tolist()], np.float32).reshape(v.shape)
