"""A weight as NumPy's BLAS multiplies it: float32 once and for all, or dequantized in each call to save memory.

Where a BLAS multiplies a few rows sooner by weights in blocks (few_rows.py), and memory allows, these are kept as well.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...array import ceil_div, float16, float32, round_to, to_float32
from ...weights.weight import PlainWeight, QuantWeight, Weight
from . import few_rows, memory, threads
from .dequant import dequant_float32

# Weights dequantized for one product: 4 MiB of float32, which stay in the last cache until they are multiplied.
_PIECE = 1 << 20

# Below this a second thread costs more than it brings: a product of a third of a millisecond on one core.
_SHARED_FLOPS = 1 << 25

# A thread's part of a product is a multiple of so many rows or columns: whole tiles of a BLAS.
_PART = 64


class EngineWeight:
    """What `prepare` makes of a weight for NumPy arrays; immutable but for its float32 copies, made when a product
    wants them.

    Of 4 bits or fewer two codes share a byte: row k in its lower half, row k + K/2 in its upper half.
    """

    def __init__(self, w: Weight, once: bool = False):
        """once: for a single product, for which blocks would not pay."""
        self.K, self.N, self.is_ordered = w.K, w.N, w.is_ordered
        self.bias = None if w.bias is None else w.bias.astype(np.float32)
        self.source: Weight = w
        self._codes: np.ndarray | None = None
        if isinstance(w, QuantWeight) and w.bits <= 4:
            self._codes, self.source = _two_a_byte(w.codes), _without_codes(w)
        self._copy: tuple[np.dtype, np.ndarray] | None = None
        self._blocks: tuple[np.dtype, np.ndarray] | None = None
        self._reserved: bool | None = None
        self._second_reserved = False if once else None
        memory.expect(0 if isinstance(w, PlainWeight) and w.weight.dtype == float32 else 4 * self.K * self.N, self)
        memory.keep_freed()

    @property
    def nbytes(self) -> int:
        """Bytes that it holds now: packed, and the float32 copies where there are any."""
        if isinstance(self.source, PlainWeight):
            packed = self.source.weight.nbytes
        else:
            codes = self.source.codes if self._codes is None else self._codes
            packed = codes.nbytes + self.source.scales.nbytes + self.source.zeros.nbytes + self.source.g_idx.nbytes
        return packed + sum(copy[1].nbytes for copy in (self._copy, self._blocks) if copy is not None)

    def product(self, x: np.ndarray) -> np.ndarray:
        """x (M, K) @ weight + bias in float32, (M, N); weights are rounded as formulas.gemm rounds them."""
        dtype = self._rounds_to(x.dtype)
        v = to_float32(x)
        whole = self._float32(dtype)
        blocks = None if whole is None or not few_rows.takes(len(x)) else self._in_blocks(dtype, whole)
        if blocks is not None:
            y = few_rows.product(v, blocks, _parts(len(x), self.K, self.N))[:, : self.N]
        elif whole is not None:
            y = _product(v, whole)
        else:
            y = np.empty((x.shape[0], self.N), np.float32)
            for columns in self._pieces():
                y[:, columns] = _product(v, self._dequantized(columns, dtype))
        if self.bias is not None:
            y += self.bias
        return y

    def _rounds_to(self, dtype: np.dtype) -> np.dtype:
        """Quantized weights are float16 numbers for float32 activations, as other libraries' dequantizers give them."""
        return float16 if dtype == float32 and isinstance(self.source, QuantWeight) else dtype

    def _float32(self, dtype: np.dtype) -> np.ndarray | None:
        """The float32 copy for this dtype, kept; None where there is no memory for it."""
        copy = self._copy
        if copy is not None and copy[0] == dtype:
            return copy[1]
        if dtype == float32 and isinstance(self.source, PlainWeight) and self.source.weight.dtype == float32:
            return self.source.weight
        if self._reserved is None:
            self._reserved = memory.reserve(4 * self.K * self.N, self)
        if not self._reserved:
            return None
        whole = np.empty((self.K, self.N), np.float32)
        for columns in self._pieces():
            whole[:, columns] = self._dequantized(columns, dtype)
        self._copy = dtype, whole
        return whole

    def _in_blocks(self, dtype: np.dtype, whole: np.ndarray) -> np.ndarray | None:
        """The float32 copy `whole` in blocks, kept; None where there is no memory for both."""
        if self._blocks is not None and self._blocks[0] == dtype:
            return self._blocks[1]
        if self._second_reserved is None:
            self._second_reserved = memory.reserve_second(few_rows.nbytes(self.K, self.N), self)
        if not self._second_reserved:
            return None
        blocks = few_rows.in_blocks(whole)
        self._blocks = dtype, blocks
        return blocks

    def _pieces(self) -> Iterator[slice]:
        step = max(64, _PIECE // max(1, self.K) // 64 * 64)
        return (slice(n, min(n + step, self.N)) for n in range(0, self.N, step))

    def _dequantized(self, columns: slice, dtype: np.dtype) -> np.ndarray:
        w = self.source
        if isinstance(w, PlainWeight):
            return to_float32(round_to(to_float32(w.weight[:, columns]), dtype))
        codes = w.codes[:, columns] if self._codes is None else _one_a_byte(self._codes[:, columns], self.K)
        return dequant_float32(codes, w.scales[:, columns], w.zeros[:, columns], w.g_idx, w.bits, dtype)


def _parts(M: int, K: int, N: int) -> int:
    """Threads that share a product of these dimensions."""
    return threads.limit() if 2 * M * K * N >= _SHARED_FLOPS else 1


def _product(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """x @ w, of which each thread makes an even part: of the rows, or of the columns where there are more of these."""
    (M, K), N = x.shape, w.shape[1]
    parts = _parts(M, K, N)
    if parts == 1:
        threads.use_one_for_blas()
        return np.matmul(x, w)
    y = np.empty((M, N), np.float32)

    def work(start: int) -> None:
        part = slice(start, start + step)
        if M > N:
            np.matmul(x[part], w, out=y[part])
        else:
            np.matmul(x, w[:, part], out=y[:, part])

    longer = max(M, N)
    step = max(_PART, ceil_div(longer, parts * _PART) * _PART)
    threads.each(work, range(0, longer, step))
    return y


def _two_a_byte(codes: np.ndarray) -> np.ndarray:
    half = (len(codes) + 1) // 2
    packed = codes[:half].copy()
    packed[: len(codes) - half] |= codes[half:] << 4
    return packed


def _one_a_byte(packed: np.ndarray, K: int) -> np.ndarray:
    half = len(packed)
    codes = np.empty((2 * half, packed.shape[1]), np.uint8)
    np.bitwise_and(packed, 15, out=codes[:half])
    np.right_shift(packed, 4, out=codes[half:])
    return codes[:K]


def _without_codes(w: QuantWeight) -> QuantWeight:
    """The weight with codes that take no memory; EngineWeight holds its own packed codes."""
    nothing = np.broadcast_to(np.zeros(1, np.uint8), w.codes.shape)
    return QuantWeight(nothing, w.scales, w.zeros, w.g_idx, w.bits, w.group_size, w.bias)
