"""(code - zero) * scale in float32, rounded once: the bits of formulas.dequant, at the speed of a few passes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ...array import keep_11_bits, round_to, to_float32

# Weights dequantized at a time: their float32 and two temporaries stay in a core's cache.
_PIECE = 1 << 18

# Where runs of rows with one group are shorter than this on average, each row gathers its own scales.
_SHORT_RUN = 16


def dequant(
    codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray, g_idx: np.ndarray, bits: int, dtype: Any
) -> np.ndarray:
    """weight[k, n] = (codes[k, n] - zeros[g_idx[k], n]) * scales[g_idx[k], n] as dtype; arguments of QuantWeight."""
    weight = np.empty(codes.shape, dtype)
    if weight.dtype == np.float16 and _exact_in_float16(scales, bits):
        # A factor of 2^-112 gives float32 the exponents of float16: what is left is to round and to shift bits.
        scaled = to_float32(scales) * np.float32(2.0**-112)
        words, room = weight.view(np.int16), _Room(codes.shape[1])
        for rows, difference, value in _products(codes, scaled, zeros, g_idx, bits):
            _to_float16_bits(difference, value, room, out=words[rows])
        return weight
    for rows, _, value in _products(codes, to_float32(scales), zeros, g_idx, bits):
        weight[rows] = round_to(value, weight.dtype)
    return weight


def dequant_float32(
    codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray, g_idx: np.ndarray, bits: int, dtype: Any
) -> np.ndarray:
    """What `dequant` gives, as float32 numbers: weights as a product in `dtype` takes them, for NumPy's BLAS."""
    weight = np.empty(codes.shape, np.float32)
    simple = dtype == np.float16 and _exact_in_float16(scales, bits)
    room = _Room(codes.shape[1])
    for rows, _, value in _products(codes, to_float32(scales), zeros, g_idx, bits):
        weight[rows] = keep_11_bits(value, room.numbers(value)) if simple else to_float32(round_to(value, dtype))
    return weight


def _exact_in_float16(scales: np.ndarray, bits: int) -> bool:
    """Whether products are multiples of 2^-24 and below 65504, and have the sign of the difference.

    Then no care for float16's subnormals and Inf is needed. A negative scale would give a difference of zero a sign.
    """
    if scales.dtype != np.float16 or np.signbit(scales).any():
        return False
    return float(scales.max(initial=0)) * 2**bits < 65504


def _products(
    codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray, g_idx: np.ndarray, bits: int
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Yields (rows, code - zero, (code - zero) * scale): integers and float32, in memory that the next rows reuse."""
    K, N = codes.shape
    step = max(1, _PIECE // max(1, N))
    room = np.empty((min(step, K), N), np.float32)
    differences = np.empty(room.shape, np.uint8 if bits < 8 else np.int16)
    for rows, group in _runs(g_idx, step):
        value, difference = room[: rows.stop - rows.start], differences[: rows.stop - rows.start]
        np.subtract(codes[rows], zeros[group], out=difference, dtype=difference.dtype)
        if bits < 8:
            difference = difference.view(np.int8)  # uint8 wraps around; read as int8 the difference is right
        np.copyto(value, difference)
        value *= scales[group]
        yield rows, difference, value


def _runs(g_idx: np.ndarray, step: int) -> Iterator[tuple[slice, Any]]:
    """Yields (rows, group): at most `step` rows with the group that they share, or each row's group."""
    K = len(g_idx)
    ends = [*(np.flatnonzero(g_idx[1:] != g_idx[:-1]) + 1).tolist(), K]
    if len(ends) * _SHORT_RUN > K:
        for start in range(0, K, step):
            rows = slice(start, min(start + step, K))
            yield rows, g_idx[rows]
        return
    first = 0
    for end in ends:
        for start in range(first, end, step):
            yield slice(start, min(start + step, end)), int(g_idx[first])
        first = end


class _Room:
    """Scratch memory for a piece of rows of N."""

    def __init__(self, N: int):
        self._float32, self._int16 = np.empty(_PIECE + N, np.float32), np.empty(_PIECE + N, np.int16)

    def numbers(self, piece: np.ndarray) -> np.ndarray:
        """float32 of the piece's shape."""
        return self._float32[: piece.size].reshape(piece.shape)

    def words(self, piece: np.ndarray) -> np.ndarray:
        """int16 of the piece's shape."""
        return self._int16[: piece.size].reshape(piece.shape)


def _to_float16_bits(difference: np.ndarray, scaled: np.ndarray, room: _Room, out: np.ndarray) -> None:
    """out[:] = the bits of float16, as int16, of float32 numbers that were multiplied by 2^-112 and are changed.

    The three upper bits of such a number's exponent are zero: shifted by 13 places, the others and the mantissa fill
    fifteen bits. The sixteenth is the sign of the difference.
    """
    bits = keep_11_bits(scaled, room.numbers(scaled)).view(np.int32)
    bits >>= 13
    np.copyto(out, bits, casting="unsafe")
    signs = room.words(difference)
    np.copyto(signs, difference)
    signs &= -0x8000
    out |= signs
