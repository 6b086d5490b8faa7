"""What formulas.py computes, bit for bit, on NumPy arrays in fewer and cheaper passes.

An in-place step of NumPy takes 0.1 to 0.2 ns a number where it uses the processor's vector units, and 0.6 to 1 ns where
it does not: `minimum` and `maximum` of an array and a scalar do not, those of two arrays do. Bytes take a quarter of
the time of 32-bit numbers, so what follows from exponents alone is computed in bytes.
"""

from __future__ import annotations

import threading
from functools import cache, lru_cache

import numpy as np

from ..array import round_to, to_float32
from . import formulas
from .formats import Element, Scale, carry_threshold, scale_values, values

# The callers' pieces: so many numbers at a time, so that each step finds its operands in the cache. The calls of these
# steps alone take some 30 us, which is 0.2 ns a number here.
PIECE = 1 << 17

_MANTISSA = 23  # bits of float32's
_FIELD = 0xFF << _MANTISSA  # the bits of its exponent


class _Room(threading.local):
    """Each thread's memory for the steps of a piece, made once.

    A freed array of this size goes back to the system, and the next one's pages cost as much as the steps themselves.
    """

    def __init__(self) -> None:
        self.magnitudes, self.binades, self.maxima = (np.empty(PIECE, np.int32) for _ in range(3))
        self.widened = np.empty(PIECE, np.float32)
        self.codes, self.counts, self.signs = (np.empty(PIECE, np.uint8) for _ in range(3))
        self.index, self.wide_index = np.empty(PIECE, np.uint16), np.empty(PIECE // 2, np.uint32)
        self.steps = lru_cache(32)(lambda *key: _Steps(self, *key))


# Functions by short names, since each look-up of one takes time, and numbers as arrays: see _Steps.
add, subtract, multiply, maximum, minimum = np.add, np.subtract, np.multiply, np.maximum, np.minimum
right_shift, left_shift, bitwise_and, bitwise_or = np.right_shift, np.left_shift, np.bitwise_and, np.bitwise_or
absolute, signbit = np.absolute, np.signbit
_SHIFT, _HALF_BYTE = np.array(_MANTISSA, np.int32), np.array(4, np.uint16)

# An exponent's field E times this is the bits of 2^(E - 127) (1 + E / 512): a number well inside its binade, whose
# lowest 14 bits are zero.
_INSIDE_BINADE = np.array((1 << _MANTISSA) + (1 << 14), np.int32)


def _byte(number: int) -> np.ndarray:
    """The number modulo 256."""
    return np.array(number % 256, np.uint8)


_room = _Room()


def widen(blocks: np.ndarray) -> np.ndarray:
    """At most PIECE numbers in float32: themselves, or a copy that lasts until this thread's next piece."""
    if blocks.dtype != np.float16:
        return to_float32(blocks)
    return to_float32(blocks, out=_room.widened[: blocks.size].reshape(blocks.shape))


def encode_blocks(blocks: np.ndarray, element: Element, scale: Scale, rule: str, packed: np.ndarray) -> np.ndarray:
    """The scale codes of float32 blocks, as formulas.encode_blocks; packed[:] = pack_bits of their element codes.

    blocks (blocks, block) float32, at most PIECE numbers; packed (blocks, block * element.bits / 8) uint8
    """
    v, steps = blocks.reshape(-1), _room.steps(*blocks.shape, element, scale)
    if rule == "floor" and not scale.mantissa_bits:
        codes_of_scales = steps.codes_by_exponents(v)
        if codes_of_scales is not None:
            steps.pack(v, packed)
            return codes_of_scales
    codes_of_scales = _codes_by_quotients(blocks, element, scale, rule)
    steps.pack(v, packed)
    packed[codes_of_scales == scale.nan_code] = 0
    return codes_of_scales


def decode_blocks(
    packed: np.ndarray, codes_of_scales: np.ndarray, element: Element, scale: Scale, out: np.ndarray
) -> None:
    """out[:] = formulas.decode_blocks(...), (blocks, block) float32; float16 is rounded once more, see `decodes_to`."""
    if not decodes_to(out.dtype, scale):
        raise TypeError(f"scales of {scale.bits} bits decode to float32, got {out.dtype}")
    if scale.bits > 8:
        out[:] = formulas.decode_blocks(packed, codes_of_scales, element, scale)
        return
    bits, together = element.bits, _together(element)
    codes = packed.reshape(-1) if bits in (4, 8) else _unpack_bits(packed.reshape(-1), bits, together)
    place, width = together * bits, codes.size // codes_of_scales.size
    index = (_room.index if place + 8 <= 16 else _room.wide_index)[: codes.size]
    _rows(width, index.dtype, place=place).take(codes_of_scales, 0, index.reshape(-1, width), "clip")
    bitwise_or(index, codes, index)
    table = _products(element, scale, out.dtype)
    table.take(index, None, out.reshape(-1).view(table.dtype), "clip")  # none is clipped: "raise" copies once more


def _together(element: Element) -> int:
    """Numbers that decode_blocks looks up at once. Of six bits and more, pairs would need a table of 8 MiB."""
    return 2 if element.bits < 6 else 1


def decodes_to(dtype: np.dtype, scale: Scale) -> bool:
    """Whether decode_blocks makes numbers of this dtype: float32 always, float16 by scales of up to eight bits."""
    return dtype == np.float32 or (dtype == np.float16 and scale.bits <= 8)


@lru_cache(maxsize=16)
def _products(element: Element, scale: Scale, dtype: np.dtype) -> np.ndarray:
    """Every element times every scale, in dtype: the scale's code above the element's, or above those of a pair."""
    with np.errstate(over="ignore", under="ignore"):
        products = round_to(scale_values(scale)[:, None] * values(element), dtype)
    if _together(element) == 1:
        return products.reshape(-1)
    pair, one = np.arange(1 << 2 * element.bits), 1 << element.bits
    both = np.stack([products[:, pair % one], products[:, pair // one]], axis=2)
    return both.reshape(-1).view(f"u{2 * both.itemsize}")


class _Steps:
    """How n numbers in blocks become codes: the steps, with the views of a thread's memory and the constants they take.

    To make a view, or an array of a Python number, takes a microsecond, which is as much as a step's own start.
    """

    def __init__(self, room: _Room, blocks: int, block: int, element: Element, scale: Scale):
        n, M = blocks * block, element.mantissa_bits
        self.codes, self.wide, self.bytes = room.codes[:n], room.binades[:n], room.counts[:n]
        self.codes_as_signed, self.wide_as_float = self.codes.view(np.int8), self.wide.view(np.float32)
        self.rows = self.bytes.reshape(blocks, block)
        self.signs = room.signs[:n]
        self.signs_as_bool = self.signs.view(bool)
        if element.bits == 4:
            self.pairs, self.upper = self.codes.view(np.uint16), self.signs.view(np.uint16)
        self.groups, self.top = _groups(self.codes, block, room)
        below, to_code = element.max_exponent - element.min_exponent, scale.bias - 127 - element.max_exponent
        # Beyond these scales saturate, or float32's own range would end below the first binade or above 2^23 steps.
        lowest, highest = max(below, scale.smallest_code - to_code), min(231 + M, scale.largest_code - to_code)
        self.lowest, self.span = _byte(lowest), highest - lowest
        self.to_code, self.first_binades = _byte(lowest + to_code), _rows(block, np.uint8, first=lowest - below)
        self.to_sum, self.steps_of_binade = _byte(_MANTISSA - M), _byte(1 << M)
        self.largest_code, self.sign = _bounds(element, PIECE)[2][:n], _byte(1 << (element.bits - 1))
        self.bits = element.bits

    def codes_by_exponents(self, v: np.ndarray) -> np.ndarray | None:
        """The scale codes by "floor"; self.codes = the magnitudes' codes. None where a scale is at its end.

        v (n,) float32. A number's step is that of its own binade, or of the block's first normal one where that is
        larger. Adding 2^23 steps and some makes float32 round to them and count them in the sum's low byte, below zero
        for negative numbers, as formulas.encode_elements does with magnitudes. No number is divided by its scale, a
        power of two: its mantissa would stay the same.
        """
        codes, wide = self.codes, self.wide
        exponents = codes
        exponents[:] = right_shift(v.view(np.int32), _SHIFT, wide)  # the low byte: without the sign
        for windows, words, kept in self.groups:
            for one, other, out in windows:
                maximum(one, other, out=out)
            kept[:] = words
        above_lowest = subtract(self.top, self.lowest)  # of each block; below the lowest this wraps around
        if maximum.reduce(above_lowest) > self.span:
            return None
        first = self.bytes
        self.first_binades.take(above_lowest, 0, self.rows, "clip")
        maximum(exponents, first, out=exponents)
        binades = subtract(exponents, first, first)
        wide[:] = add(exponents, self.to_sum, exponents)
        multiply(wide, _INSIDE_BINADE, wide)
        add(v, self.wide_as_float, self.wide_as_float)
        codes[:] = wide
        absolute(self.codes_as_signed, self.codes_as_signed)  # -128 stays, and is 128 without a sign
        add(codes, multiply(binades, self.steps_of_binade, binades), codes)
        minimum(codes, self.largest_code, out=codes)
        return add(above_lowest, self.to_code)

    def pack(self, v: np.ndarray, packed: np.ndarray) -> None:
        """packed[:] = pack_bits of self.codes, which are changed, with the signs of v (n,) float32."""
        codes, signs = self.codes, self.signs
        signbit(v, self.signs_as_bool)
        multiply(signs, self.sign, signs)
        if self.bits == 8:
            bitwise_or(codes, signs, packed.reshape(-1))
            return
        bitwise_or(codes, signs, codes)
        if self.bits == 4:
            bitwise_or(self.pairs, right_shift(self.pairs, _HALF_BYTE, self.upper), self.pairs)
            packed[:] = self.pairs.reshape(packed.shape)
        else:
            _pack_bits(codes, self.bits, packed.reshape(-1))


def _pack_bits(codes: np.ndarray, bits: int, packed: np.ndarray) -> None:
    """packed[:] = formulas.pack_bits of codes (8 n,), which are changed; packed (bits n,) uint8, contiguous."""
    words, upper = codes.view(np.uint64), _room.signs[: codes.size].view(np.uint64)
    for low, high, shift in _moves(bits):
        bitwise_and(words, high, upper)
        right_shift(upper, shift, upper)
        bitwise_and(words, low, words)
        bitwise_or(words, upper, words)
    packed.view(f"V{bits}")[:] = words.view(_lowest_bytes(bits))["lowest"]


def _unpack_bits(packed: np.ndarray, bits: int, together: int) -> np.ndarray:
    """formulas.unpack_bits of packed (bits n,) uint8, contiguous; the codes last until this thread's next step.

    together  1, or 2: then two codes stay side by side, the first in the lower bits, as (4 n,) uint16

    What the words' upper bytes held before does not matter: the first step takes nothing of them.
    """
    codes, size = _room.codes, packed.size // bits * 8
    words, upper = codes[:size].view(np.uint64), _room.signs[:size].view(np.uint64)
    words.view(_lowest_bytes(bits))["lowest"] = packed.view(f"V{bits}")
    for low, high, shift in reversed(_moves(bits)[together - 1 :]):
        left_shift(words, shift, upper)
        bitwise_and(upper, high, upper)
        bitwise_and(words, low, words)
        bitwise_or(words, upper, words)
    return words.view(f"u{together}")


@cache
def _moves(bits: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The three steps of _pack_bits: of each two lanes of a word, where the lower one's codes are, where the upper
    one's are, and by how many bits these move to stand beside the lower ones.
    """
    moves = []
    for width in (1, 2, 4):  # codes that already stand side by side at the bottom of each lane
        lane, used = 8 * width, bits * width
        low = sum(((1 << used) - 1) << start for start in range(0, 64, 2 * lane))
        moves.append((np.array(low, np.uint64), np.array(low << lane, np.uint64), np.array(lane - used, np.uint64)))
    return moves


@cache
def _lowest_bytes(n: int) -> np.dtype:
    """The n lowest bytes of each 64-bit word, which NumPy copies at once, and in half the time of a slice's n bytes."""
    return np.dtype({"names": ["lowest"], "formats": [f"V{n}"], "offsets": [0], "itemsize": 8})


@lru_cache(maxsize=64)
def _rows(width: int, dtype: np.dtype | type, first: int = 0, place: int = 0) -> np.ndarray:
    """(256, width): row i holds (first + i) 2^place, modulo the dtype's range. To take rows spreads what blocks share
    over their numbers in half the time of `repeat`.
    """
    return ((first + np.arange(256)) << place).astype(dtype).repeat(width).reshape(256, width)


Windows = list[tuple[np.ndarray, np.ndarray, np.ndarray]]


def _groups(v: np.ndarray, block: int, room: _Room) -> tuple[list[tuple[Windows, np.ndarray, np.ndarray]], np.ndarray]:
    """Operands and outputs of the steps that find the largest of each `block` bytes of v, and where they are then.

    Four neighbours at a time: maxima of each byte and the next, then of each two and the next two. With all operands
    contiguous that takes less time than to leave out what is not needed. Of each 32-bit word the lowest byte is kept,
    which a conversion to bytes does in vector units, as no copy with a stride does.
    """
    found, one, other = [], room.counts, room.signs
    while block > 1:
        width, distance, size = min(4, block), 1, v.size
        windows = []
        while distance < width:
            out = one[: v.size - distance]
            windows.append((v[:-distance], v[distance:], out))
            v, one, other, distance = out, other, one, 2 * distance
        kept = one[: size // width]
        found.append((windows, other[:size].view(f"u{width}"), kept))
        v, one, other, block = kept, other, one, block // width
    return found, v


def _codes_by_quotients(blocks: np.ndarray, element: Element, scale: Scale, rule: str) -> np.ndarray:
    """The scale codes; _room.codes = the magnitudes' codes: by formulas.py's own steps, for every scale and rule."""
    v = blocks.reshape(-1)
    magnitudes = np.bitwise_and(v.view(np.int32), 0x7FFFFFFF, out=_room.magnitudes[: v.size])
    largest = _largest(magnitudes, blocks.shape[1])
    codes_of_scales = _scale_codes(largest, element, scale, rule)
    y = magnitudes.view(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):  # NaN blocks, and saturation
        by_block = y.reshape(blocks.shape)
        by_block /= scale_values(scale)[codes_of_scales][:, None]
        if codes_of_scales.max() >= scale.largest_code:  # else no number is twice as large as the element's largest
            np.minimum(y, _bounds(element, PIECE)[0][: y.size], out=y)
        _magnitude_codes(y, element)
    return codes_of_scales


def _largest(magnitudes: np.ndarray, block: int) -> np.ndarray:
    """The largest of each `block` numbers, a power of two of them: (n,) -> (n / block,). Neighbours first.

    In half the time of `max(axis=1)`, and for blocks of eight in a fifth of the time of `reduceat`.
    """
    while block > 1:
        half = magnitudes.size // 2
        magnitudes = np.maximum(magnitudes[0::2], magnitudes[1::2], out=_room.maxima[:half])
        block //= 2
    return magnitudes


def _scale_codes(largest: np.ndarray, element: Element, scale: Scale, rule: str) -> np.ndarray:
    """formulas.scale_codes of the largest magnitudes, given as bits.

    A power of two is the exponent's field, which adding up to the carry's threshold raises by one. Subnormal numbers
    have no such field, Inf and NaN no power of two.
    """
    if scale.mantissa_bits or largest.min() <= 0x7FFFFF or largest.max() >= _FIELD:
        return formulas.scale_codes(largest.view(np.float32), element, scale, rule)
    below_carry = int((2 - carry_threshold(element, rule)) * 2**_MANTISSA) - (rule == "rceil")
    code = (largest + below_carry) >> _MANTISSA
    code += scale.bias - 127 - element.max_exponent
    code = np.maximum(code, scale.smallest_code, out=code)  # two steps cost less than one of `clip`
    return np.minimum(code, scale.largest_code, out=code).astype(np.uint8)


def _magnitude_codes(y: np.ndarray, element: Element) -> None:
    """_room.codes[: n] = formulas.encode_elements of y (n,) float32, none of them negative. y is changed.

    The low byte of the rounded sum counts the steps of its binade, and the low byte of the exponent, shifted, the steps
    of the binades below: their sum is right modulo 256, and a code is less than that.
    """
    M = element.mantissa_bits
    _, first_binade, largest_code = (bound[: y.size] for bound in _bounds(element, PIECE))
    bits, code = y.view(np.int32), _room.codes[: y.size]
    if element.max_exponent == element.min_exponent:  # INTn and E1Mx: the same step for all numbers
        y += np.ldexp(np.float32(1), element.min_exponent + _MANTISSA - M)
        np.copyto(code, bits, casting="unsafe")
    else:
        binade, count = np.bitwise_and(bits, _FIELD, out=_room.binades[: y.size]), _room.counts[: y.size]
        np.maximum(binade, first_binade, out=binade)
        binade += (_MANTISSA - M) << _MANTISSA
        y += binade.view(np.float32)
        np.copyto(code, bits, casting="unsafe")
        binade >>= _MANTISSA - M
        np.copyto(count, binade, casting="unsafe")
        code += count
        code -= np.uint8(((element.min_exponent + 127 + _MANTISSA - M) << M) % 256)
    np.minimum(code, largest_code, out=code)


@lru_cache(maxsize=4)
def _bounds(element: Element, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three bounds, each `size` times in an array: the largest magnitude, the first normal binade's bits, and the
    largest code; float32, int32 and uint8.
    """
    first_binade = (element.min_exponent + 127) << _MANTISSA
    return (
        np.full(size, element.largest, np.float32),
        np.full(size, first_binade, np.int32),
        np.full(size, element.largest_code, np.uint8),
    )
