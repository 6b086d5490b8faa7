"""What an MLP must give: its formula in float64, unsharded, and how far float16 arithmetic may stray from it.

Independent of the package's layers: nothing here knows of shards, schemes or orders. Benches and tests share it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

EPS32 = 2.0**-24  # largest relative error of one rounding to float32


def unit_roundoff(dtype: Any) -> float:
    """Largest relative error of one rounding to float16 (2^-11) or bfloat16 (2^-8)."""
    return 2.0**-11 if np.dtype(dtype) == np.float16 else 2.0**-8


def gemm_bound(x: np.ndarray, w: np.ndarray, exact: np.ndarray, unit: float) -> np.ndarray:
    """One rounding of the result and the error of a float32 sum of K terms, element by element (float64 arrays)."""
    tiny = 2.0**-25 if unit == 2.0**-11 else 2.0**-134  # half the spacing of subnormal results
    return unit * np.abs(exact) + 2 * math.sqrt(x.shape[1]) * EPS32 * (np.abs(x) @ np.abs(w)) + tiny


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


def reference_mlp(
    x: np.ndarray,
    gate: np.ndarray | None,
    up: np.ndarray,
    down: np.ndarray,
    kind: str,
    tp: int,
    up_bias: np.ndarray | None = None,
    down_bias: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(exact, bound), both (M, N) float64: |y - exact| <= bound for a right y in the dtype of x, on `tp` ranks.

    x     (M, H) float16 or bfloat16
    gate  (H, I), up (H, I), down (I, N): dequantized weights in the dtype of x

    The bound follows each rounding through the layers: both first products, the activation, each rank's partial sum
    and the final sum. Roundings of different features are independent, so down's sum over them takes the root of
    their squares, times 4: seven standard deviations of errors uniform in their interval. It is tight enough that one
    row of `down` with another row's scale, or one feature missing, falls outside.
    """
    unit = unit_roundoff(x.dtype)
    x64, up64, down64 = (a.astype(np.float64) for a in (x, up, down))
    u = x64 @ up64 + (0 if up_bias is None else up_bias.astype(np.float64))
    u_error = gemm_bound(x64, up64, u, unit)
    if gate is None:
        h = activation(kind, u)
        h_error = 1.13 * u_error  # no activation here is steeper than 1.13
    else:
        gate64 = gate.astype(np.float64)
        g = x64 @ gate64
        g_error = gemm_bound(x64, gate64, g, unit)
        h = activation(kind, g) * u
        h_error = np.abs(activation(kind, g)) * u_error + 1.13 * g_error * (np.abs(u) + u_error)
    h_error += (unit + 16 * EPS32) * np.abs(h) + 2.0**-25
    exact = h @ down64 + (0 if down_bias is None else down_bias.astype(np.float64))
    typical = np.sqrt(h**2 @ down64**2)  # what a sum of these terms comes to with signs as they fall
    partial_sums = unit * (np.abs(exact) + 4 * math.sqrt(tp) * typical) if tp > 1 else 0.0
    propagated = 4 * np.sqrt(h_error**2 @ down64**2)
    return exact, gemm_bound(h, down64, exact, unit) + propagated + partial_sums


def outside(y: np.ndarray, exact: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """Which elements of y break the bound; NaN does."""
    return ~(np.abs(y.astype(np.float64) - exact) <= bound)
