"""The formulas of the block codecs, for NumPy and CuPy alike: the specification.

Blocks are the rows of a (blocks, block) float32 array. Each step is integer arithmetic or one float32
operation, rounded to nearest even and with subnormals: a kernel that follows these formulas makes the same
bytes.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from ..array import Array, array_module
from .formats import Element, Scale, carry_threshold, scale_values, values

_MANTISSA = 23  # bits of float32's


def scale_codes(amax: Array, element: Element, scale: Scale, rule: str) -> Array:
    """The scale of each block by `rule` (formats.RULES), saturated; NaN where amax is not finite.

    amax (blocks,) float32, the largest magnitudes -> (blocks,) uint16 for float16 scales, else uint8
    """
    xp = array_module(amax)
    finite = xp.isfinite(amax)
    amax = xp.where(finite, amax, xp.float32(0))
    rounded = _ratio_codes if scale.mantissa_bits else _power_codes
    code = xp.clip(rounded(amax, element, scale, rule), scale.smallest_code, scale.largest_code)
    return xp.where(finite, code, scale.nan_code).astype(xp.uint16 if scale.bits > 8 else xp.uint8)


def _power_codes(amax: Array, element: Element, scale: Scale, rule: str) -> Array:
    """Codes of floor(log2 amax) - emax, plus one where the rule carries. An all-zero block counts as tiny."""
    xp = array_module(amax)
    half, above = xp.frexp(xp.maximum(amax, xp.float32(2.0**-149)))  # amax = half * 2^above, half in [1/2, 1)
    mantissa, threshold = 2 * half, carry_threshold(element, rule)
    carry = mantissa > threshold if rule == "rceil" else mantissa >= threshold
    return above - 1 - element.max_exponent + carry + scale.bias


def _ratio_codes(amax: Array, element: Element, scale: Scale, rule: str) -> Array:
    """Codes of amax / largest, a float32 quotient, rounded down, to nearest even or up."""
    xp = array_module(amax)
    ratio = amax / xp.float32(element.largest)
    table = xp.asarray(scale_values(scale)[: scale.largest_code + 1])  # in rising order
    below = xp.clip(xp.searchsorted(table, ratio, side="right") - 1, 0, scale.largest_code - 1)
    to_lower, to_upper = ratio - table[below], table[below + 1] - ratio
    if rule == "even":
        up = (to_upper < to_lower) | ((to_upper == to_lower) & (below % 2 == 1))
    elif rule == "rceil":
        up = to_lower > 0
    else:
        up = to_upper <= 0
    return below + up


def encode_elements(y: Array, element: Element) -> Array:
    """The code of each y, rounded to nearest even, saturated; any shape, float32 -> uint8. NaN has no code.

    With p the power of two at or below |y|, but not below the smallest normal number, the format's step at
    |y| is p / 2^M. Adding p 2^(23 - M) makes float32 round to just that step, and leaves the count of steps
    in the low bits of the sum; each binade above the smallest normal one adds 2^M to the code.
    """
    xp = array_module(y)
    M = element.mantissa_bits
    first_binade = (element.min_exponent + 127) << _MANTISSA
    magnitude = xp.abs(y)  # the steps below work in place: a new array for each would cost more than the step
    xp.minimum(magnitude, xp.float32(element.largest), out=magnitude)
    code = magnitude.view(xp.int32)
    if element.max_exponent == element.min_exponent:  # INTn and E1Mx: the same step for all numbers
        magic = xp.int32(first_binade + ((_MANTISSA - M) << _MANTISSA))
        magnitude += magic.view(xp.float32)
        code -= magic
    else:
        binade = code & 0x7F800000
        xp.maximum(binade, first_binade, out=binade)
        magic = binade + ((_MANTISSA - M) << _MANTISSA)
        magnitude += magic.view(xp.float32)
        code -= magic
        binade -= first_binade
        binade >>= _MANTISSA - M
        code += binade
    sign = y.view(xp.int32) >> (32 - element.bits)
    sign &= 1 << (element.bits - 1)
    code |= sign
    return code.astype(xp.uint8)


def encode_blocks(blocks: Array, element: Element, scale: Scale, rule: str) -> tuple[Array, Array]:
    """X = scale(max |v|), q = round(v / X): codes (blocks, block) uint8 and scale codes (blocks,).

    Blocks with NaN or Inf have the NaN scale and codes of zero.
    """
    xp = array_module(blocks)
    magnitudes = blocks.view(xp.int32) & 0x7FFFFFFF  # bits are ordered as the values are, then Inf, then NaN
    amax = magnitudes.max(axis=1).view(xp.float32)
    codes_of_scales = scale_codes(amax, element, scale, rule)
    scales = xp.asarray(scale_values(scale))[codes_of_scales]
    with np.errstate(invalid="ignore", over="ignore"):  # NaN blocks, and saturation
        codes = encode_elements(blocks / scales[:, None], element)
    codes[codes_of_scales == scale.nan_code] = 0
    return codes, codes_of_scales


def decode_blocks(packed: Array, codes_of_scales: Array, element: Element, scale: Scale) -> Array:
    """v = q X in float32, one rounding (none where X is a power of two): (blocks, block).

    packed  (blocks, block * element.bits / 8) uint8, as pack_bits makes them
    """
    xp = array_module(packed)
    if element.bits == 4:  # a byte holds two numbers: half the look-ups, and no unpacking
        v = xp.asarray(pairs(element)).take(packed).view(xp.float32)
    else:
        v = xp.asarray(values(element)).take(unpack_bits(packed.reshape(-1), element.bits)).reshape(len(packed), -1)
    with np.errstate(over="ignore"):  # a magnitude that was rounded up past float32's range
        v *= xp.asarray(scale_values(scale))[codes_of_scales][:, None]
    return v


@cache
def pairs(element: Element) -> np.ndarray:
    """The two numbers of each byte of 4-bit codes, (256,) uint64 that hold two float32 each."""
    codes = np.arange(256)
    return np.stack([values(element)[codes % 16], values(element)[codes // 16]], axis=1).view(np.uint64).reshape(-1)


def pack_bits(codes: Array, bits: int) -> Array:
    """Code i in bits [i bits, (i + 1) bits) of one little-endian bit string.

    codes (8 n,) uint8, each below 2^bits -> (bits n,) uint8. Eight codes, the bytes of a 64-bit word, move
    together in three steps, neighbours first.
    """
    xp = array_module(codes)
    if bits == 8:
        return codes
    words = codes.view(xp.uint64)
    for width in (1, 2, 4):  # codes that already stand side by side at the bottom of each lane
        lane = 8 * width
        low = xp.uint64(_repeated((1 << bits * width) - 1, 2 * lane))
        words = (words & low) | ((words >> xp.uint64(lane - bits * width)) & (low << xp.uint64(bits * width)))
    unit = math.gcd(bits, 8)  # bytes that move at once
    packed = words.view(f"u{unit}").reshape(-1, 8 // unit)[:, : bits // unit]
    return xp.ascontiguousarray(packed).reshape(-1).view(xp.uint8)


def unpack_bits(packed: Array, bits: int) -> Array:
    """The inverse of pack_bits: (bits n,) uint8 -> (8 n,) uint8."""
    xp = array_module(packed)
    if bits == 8:
        return packed
    spread = xp.zeros((packed.size // bits, 8), xp.uint8)
    spread[:, :bits] = packed.reshape(-1, bits)
    words = spread.reshape(-1).view(xp.uint64)
    for width in (4, 2, 1):
        lane = 8 * width
        low = xp.uint64(_repeated((1 << bits * width) - 1, 2 * lane))
        words = (words & low) | ((words & (low << xp.uint64(bits * width))) << xp.uint64(lane - bits * width))
    return words.view(xp.uint8)


def _repeated(pattern: int, period: int) -> int:
    """`pattern` at every multiple of `period` bits of a 64-bit word."""
    return sum(pattern << shift for shift in range(0, 64, period))


def hadamard(blocks: Array) -> Array:
    """blocks @ H, H the symmetric Hadamard matrix of +1 and -1 in Sylvester's order; H @ H = block identity.

    blocks (n, block) float32, block a power of two. Butterflies, each a sum and a difference, from distance 1
    up.
    """
    xp = array_module(blocks)
    y, distance = blocks, 1
    with np.errstate(invalid="ignore", over="ignore"):  # Inf - Inf is NaN, as it has to be
        while distance < blocks.shape[1]:
            pairs = y.reshape(-1, 2, distance)
            y = xp.stack((pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]), axis=1)
            distance *= 2
    return y.reshape(blocks.shape)
