"""What an MLP must give: its formula in float64, unsharded, and how far float16 arithmetic may stray from it.

Independent of the package's layers: nothing here knows of shards, schemes or orders. Benches and tests share it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

EPS32 = 2.0**-24  # largest relative error of one rounding to float32


def unit_roundoff(dtype: Any) -> float:
    """Largest relative error of one rounding to float16 (2^-11) or bfloat16 (2^-8)."""
    return 2.0**-11 if np.dtype(dtype) == np.float16 else 2.0**-8


def gemm_bound(x: np.ndarray, w: np.ndarray, exact: np.ndarray, unit: float) -> np.ndarray:
    """How far x @ w may be off: one rounding, and a float32 sum over K; float64 arrays."""
    return sum_bound(exact, np.abs(x) @ np.abs(w), x.shape[1], unit)


def sum_bound(exact: np.ndarray, magnitude: np.ndarray, terms: int, unit: float) -> np.ndarray:
    """How far a float32 sum of so many terms may be off after one rounding; `magnitude` is the sum of their sizes."""
    tiny = 2.0**-25 if unit == 2.0**-11 else 2.0**-134  # half the spacing of subnormal results
    return unit * np.abs(exact) + 2 * math.sqrt(terms) * EPS32 * magnitude + tiny


def activation(kind: str, v: np.ndarray) -> np.ndarray:
    """silu, gelu or gelu_tanh in float64."""
    if kind == "silu":
        with np.errstate(over="ignore"):
            return v / (1 + np.exp(-v))
    if kind == "gelu":
        return v * 0.5 * (1 + np.vectorize(math.erf)(v / math.sqrt(2)))
    if kind == "gelu_tanh":
        return v * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))
    raise ValueError(f"activation {kind!r}")


@dataclass(frozen=True)
class Features:
    """Some of the intermediate features of an MLP: their columns of gate and up, their rows of down, dequantized.

    gate  (H, n) or None, up (H, n), down (n, N); gate_bias and up_bias (n,) or None
    """

    gate: np.ndarray | None
    up: np.ndarray
    down: np.ndarray
    gate_bias: np.ndarray | None = None
    up_bias: np.ndarray | None = None


def reference_mlp(
    x: np.ndarray, blocks: Iterable[Features], kind: str, tp: int, down_bias: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(exact, bound), both (M, N) float64: |y - exact| <= bound for a right y in the dtype of x, on `tp` ranks.

    x       (M, H) float16 or bfloat16
    blocks  all features once, in any order; a large layer comes in blocks, since float64 takes its room

    The bound follows each rounding through the layers: both first products, the activation, each rank's partial sum
    and the final sum. Roundings of different features are independent, so down's sum over them takes the root of
    their squares, times 4: seven standard deviations of errors uniform in their interval. It is tight enough that one
    row of `down` with another row's scale, or one feature missing, falls outside.
    """
    unit = unit_roundoff(x.dtype)
    x64 = x.astype(np.float64)
    exact = magnitude = squares = error_squares = np.zeros(())
    features = 0
    for block in blocks:
        h, h_error = _intermediate(x64, block, kind, unit)
        down = block.down.astype(np.float64)
        exact = exact + h @ down
        magnitude = magnitude + np.abs(h) @ np.abs(down)
        squares = squares + h**2 @ down**2
        error_squares = error_squares + h_error**2 @ down**2
        features += len(down)
    if down_bias is not None:
        exact = exact + down_bias.astype(np.float64)
    # A partial sum is rounded too. With signs as they fall, sums of these terms come to the root of their squares.
    partial_sums = unit * (np.abs(exact) + 4 * np.sqrt(tp * squares)) if tp > 1 else 0.0
    return exact, sum_bound(exact, magnitude, features, unit) + 4 * np.sqrt(error_squares) + partial_sums


def _intermediate(x: np.ndarray, block: Features, kind: str, unit: float) -> tuple[np.ndarray, np.ndarray]:
    """act(x @ gate) * (x @ up), or act(x @ up), and how far it may be off."""
    u, u_error = _product(x, block.up, block.up_bias, unit)
    if block.gate is None:
        h, error = activation(kind, u), 1.13 * u_error  # no activation here is steeper than 1.13
    else:
        g, g_error = _product(x, block.gate, block.gate_bias, unit)
        h = activation(kind, g) * u
        error = np.abs(activation(kind, g)) * u_error + 1.13 * g_error * (np.abs(u) + u_error)
    return h, error + (unit + 16 * EPS32) * np.abs(h) + 2.0**-25


def _product(x: np.ndarray, w: np.ndarray, bias: np.ndarray | None, unit: float) -> tuple[np.ndarray, np.ndarray]:
    w = w.astype(np.float64)
    y = x @ w + (0 if bias is None else bias.astype(np.float64))
    return y, gemm_bound(x, w, y, unit)


def outside(y: np.ndarray, exact: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """Which elements of y break the bound; NaN does."""
    return ~(np.abs(y.astype(np.float64) - exact) <= bound)
