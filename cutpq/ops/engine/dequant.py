"""(code - zero) * scale in float32, rounded once: the bits of formulas.dequant, at the speed of a few passes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ...array import round_to, to_float32

# Weights dequantized at a time: their float32 and two temporaries stay in a core's cache.
_PIECE = 1 << 16

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
        words, scratch = weight.view(np.uint16), np.empty(2 * _PIECE + 2 * codes.shape[1], np.int32)
        for rows, value in _products(codes, scaled, zeros, g_idx, bits):
            np.copyto(words[rows], _float16_bits(value, scratch), casting="unsafe")
        return weight
    for rows, value in _products(codes, to_float32(scales), zeros, g_idx, bits):
        weight[rows] = round_to(value, weight.dtype)
    return weight


def dequant_float32(
    codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray, g_idx: np.ndarray, bits: int, dtype: Any
) -> np.ndarray:
    """What `dequant` gives, as float32 numbers: weights as a product in `dtype` takes them, for NumPy's BLAS."""
    weight = np.empty(codes.shape, np.float32)
    simple = dtype == np.float16 and _exact_in_float16(scales, bits)
    scratch = np.empty(_PIECE + codes.shape[1], np.int32)
    for rows, value in _products(codes, to_float32(scales), zeros, g_idx, bits):
        weight[rows] = _keep_11_bits(value, scratch) if simple else to_float32(round_to(value, dtype))
    return weight


def _exact_in_float16(scales: np.ndarray, bits: int) -> bool:
    """Whether products are multiples of 2^-24 and below 65504: no care for float16's subnormals and Inf is needed."""
    largest = float(np.abs(scales).max(initial=0))
    return scales.dtype == np.float16 and largest * 2**bits < 65504


def _products(
    codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray, g_idx: np.ndarray, bits: int
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields (rows, (code - zero) * scale): exact, in float32, in memory that the next rows reuse."""
    K, N = codes.shape
    step = max(1, _PIECE // max(1, N))
    room, differences = np.empty((min(step, K), N), np.float32), np.empty((min(step, K), N), np.int16)
    for rows, group in _runs(g_idx, step):
        count = rows.stop - rows.start
        value, difference = room[:count], differences[:count]
        if bits < 8:
            narrow = (codes[rows] - zeros[group]).view(
                np.int8
            )  # uint8 wraps around; read as int8 the difference is right
            np.multiply(narrow, scales[group], out=value)
        else:
            np.subtract(codes[rows], zeros[group], out=difference, dtype=np.int16)
            np.multiply(difference, scales[group], out=value)
        yield rows, value


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


def _keep_11_bits(value: np.ndarray, scratch: np.ndarray) -> np.ndarray:
    """float32 rounded to nearest even in 11 bits, in place: float16's numbers, if no exponent is out of its range."""
    bits, odd = value.view(np.int32), scratch[: value.size].reshape(value.shape)
    np.right_shift(bits, 13, out=odd)
    odd &= 1
    odd += 0xFFF
    bits += odd
    bits &= -0x2000
    return value


def _float16_bits(scaled: np.ndarray, scratch: np.ndarray) -> np.ndarray:
    """float16's bits of float32 numbers that were multiplied by 2^-112: rounded, shifted, the sign put back."""
    bits = scaled.view(np.int32)
    odd = scratch[: bits.size].reshape(bits.shape)
    sign = scratch[bits.size : 2 * bits.size].reshape(bits.shape)
    np.right_shift(bits, 16, out=sign)
    sign &= -0x8000
    np.right_shift(bits, 13, out=odd)
    odd &= 1
    odd += 0xFFF
    bits += odd
    bits >>= 13
    bits |= sign
    return bits
