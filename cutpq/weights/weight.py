"""What the weight of a linear layer is, quantized or plain, whatever file format it came from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np

from ..array import Array, array_module, bfloat16, check_array, move


def is_ordered(g_idx: Array) -> bool:
    """Whether the groups of the rows, (K,) integers, ascend: the rows of every group are contiguous then."""
    return bool((g_idx[1:] >= g_idx[:-1]).all())


@dataclass(frozen=True)
class QuantWeight:
    """weight[k, n] = (codes[k, n] - zeros[g_idx[k], n]) * scales[g_idx[k], n]

    codes       (K, N) uint8, each below 2**bits
    scales      (G, N) float16, or float32 where the file holds float32 or bfloat16
    zeros       (G, N) uint8, the zero point itself: no format's offset is left in it
    g_idx       (K,) int32, the group of each row, 0 <= g_idx < G
    bits        2, 3, 4 or 8
    group_size  rows that the writer put into one group; K where one group holds all rows
    bias        (N,) float, or None

    A frozen value: every operation on weights returns a new one. NumPy or CuPy, all arrays alike.
    """

    codes: Array
    scales: Array
    zeros: Array
    g_idx: Array
    bits: int
    group_size: int
    bias: Array | None = None

    def __post_init__(self) -> None:
        array_module(self.codes, self.scales, self.zeros, self.g_idx, self.bias)
        check_array("codes", self.codes, ("K", "N"), np.uint8)
        check_array("scales", self.scales, ("G", self.N), np.float16, np.float32)
        check_array("zeros", self.zeros, (self.G, self.N), np.uint8)
        check_array("g_idx", self.g_idx, (self.K,), np.int32)
        if self.bias is not None:
            check_array("bias", self.bias, (self.N,))

    @property
    def K(self) -> int:
        """Input features: the dimension that a product reduces."""
        return int(self.codes.shape[0])

    @property
    def N(self) -> int:
        """Output features."""
        return int(self.codes.shape[1])

    @property
    def G(self) -> int:
        """Groups, counted by their rows of `scales`."""
        return int(self.scales.shape[0])

    @cached_property
    def is_ordered(self) -> bool:
        """Whether the rows of every group are contiguous and the groups ascend, as kernels want them."""
        return is_ordered(self.g_idx)

    def to(self, xp: ModuleType) -> QuantWeight:
        """The same weight as arrays of `xp` (numpy or cupy): one copy per tensor, none where it is there already."""
        if xp is array_module(self.codes):
            return self
        arrays: dict[str, Any] = {name: move(getattr(self, name), xp) for name in ("codes", "scales", "zeros", "g_idx")}
        return replace(self, bias=None if self.bias is None else move(self.bias, xp), **arrays)


@dataclass(frozen=True)
class PlainWeight:
    """A weight that is not quantized. Every row is a group of its own, in order: any cut and any scheme suits it.

    weight  (K, N) float16, bfloat16 or float32
    bias    (N,) float, or None
    """

    weight: Array
    bias: Array | None = None

    is_ordered = True

    def __post_init__(self) -> None:
        array_module(self.weight, self.bias)
        check_array("weight", self.weight, ("K", "N"), np.float16, bfloat16, np.float32)
        if self.bias is not None:
            check_array("bias", self.bias, (self.N,))

    @property
    def K(self) -> int:
        """Input features."""
        return int(self.weight.shape[0])

    @property
    def N(self) -> int:
        """Output features."""
        return int(self.weight.shape[1])

    @cached_property
    def g_idx(self) -> np.ndarray:
        """0, 1, ... K-1."""
        return np.arange(self.K, dtype=np.int32)

    def as_dtype(self, dtype: np.dtype) -> Array:
        """`weight` in this dtype, converted once and kept."""
        if dtype not in self._by_dtype:
            self._by_dtype[dtype] = self.weight.astype(dtype)
        return self._by_dtype[dtype]

    @cached_property
    def _by_dtype(self) -> dict[np.dtype, Array]:
        return {self.weight.dtype: self.weight}

    def to(self, xp: ModuleType) -> PlainWeight:
        """The same weight as arrays of `xp` (numpy or cupy)."""
        if xp is array_module(self.weight):
            return self
        return PlainWeight(move(self.weight, xp), None if self.bias is None else move(self.bias, xp))


Weight = QuantWeight | PlainWeight
