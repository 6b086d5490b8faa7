"""The activation between an MLP's two products as a kernel of its own, for products that cuBLAS computed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..array import Array, aligned, array_module, bfloat16, ceil_div, check_array, round_to, to_float32
from ..kernels import load as kernels
from ..kernels.config import Config, dtype_code
from . import formulas as ref
from .engine import elementwise
from .engine.choice import uses_engine


def activation_code(kind: str | None) -> int:
    """As tile/activation.cuh has it: 0 for none, else 1 + its place in formulas.ACTIVATIONS."""
    return 0 if kind is None else 1 + ref.ACTIVATIONS.index(kind)


@dataclass(frozen=True)
class ActivationConfig(Config):
    """activation: a thread takes eight features; GATED as in GemmConfig."""

    DTYPE: int
    ACTIVATION: int
    GATED: bool
    THREADS: int = 256

    def grid(self, features: int) -> tuple[int]:
        """Blocks for `features` columns of the result, a multiple of 8."""
        return (ceil_div(features // 8, self.THREADS),)


def activate(kind: str, x: Array, *, gated: bool = False, out: Array | None = None) -> Array:
    """y = act(x); gated: y = act(gate) * up, where eight columns of gate, then the eight of up, alternate in x.

    kind  one of formulas.ACTIVATIONS
    x     (M, N) float16, bfloat16 or float32; N a multiple of 16 where gated
    out   (M, N), or (M, N / 2) where gated, of x's dtype; may be x where not gated; None to allocate it

    In float32, rounded once. Deterministic. Raises TypeError for another dtype, ValueError for another shape or kind.
    """
    check_array("x", x, ("M", "N"), np.float16, bfloat16, np.float32)
    M, N = x.shape
    if gated and N % 16:
        raise ValueError(f"gate and up alternate by eight columns: N must be a multiple of 16, got {N}")
    if kind not in ref.ACTIVATIONS:
        raise ValueError(f"activation {kind!r} is not one of {', '.join(ref.ACTIVATIONS)}")
    xp, shape = array_module(x, out), (M, N // 2 if gated else N)
    y = xp.empty(shape, x.dtype) if out is None else check_array("out", out, shape, x.dtype)
    if kernels.usable(xp) and x.dtype != np.float32 and y.size and y.size % 8 == 0:
        config = ActivationConfig(dtype_code(x.dtype), activation_code(kind), gated)
        kernel = kernels.load("activation", config, xp)
        kernel(config.grid(y.size), config.THREADS, aligned(x), y, y.size // 8)
        return y
    if uses_engine(xp):
        v = to_float32(x)
        pairs = v.reshape(M, -1, 2, 8) if gated else None
        gate, up = (v, None) if pairs is None else (pairs[:, :, i].reshape(shape) for i in (0, 1))
        y[...] = round_to(elementwise.activate(kind, gate, up), x.dtype)
        return y
    if gated:
        pairs = x.reshape(M, -1, 2, 8)
        y[...] = ref.activate(kind, pairs[:, :, 0], pairs[:, :, 1]).reshape(shape)
    else:
        y[...] = ref.activate(kind, x)
    return y
