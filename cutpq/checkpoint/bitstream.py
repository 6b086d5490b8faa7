"""Codes of 1 to 8 bits in 32-bit words: a dense bitstream, little end first.

Code i occupies bits  i*bits .. (i+1)*bits - 1  of the stream, and bit b of the stream is bit b % 32 of word b // 32.
So a 4-bit word holds eight codes, and a 3-bit code may straddle two words. GPTQ packs rows of weights and columns of
zeros this way, compressed-tensors likewise.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd

import numpy as np

from ..array import ceil_div


def words_for(count: int, bits: int) -> int:
    """Words that `count` codes fill."""
    return ceil_div(count * bits, 32)


def unpack(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The codes in `words`, packed along the first axis: (words_for(count, bits), n) int32 -> (count, n) uint8."""
    words = words.view(np.uint32)
    codes = np.empty((count, *words.shape[1:]), np.uint8)
    period, stride = _period(bits)
    room = np.empty((ceil_div(count, period), *words.shape[1:]), np.uint32)
    for i in range(min(period, count)):
        target = codes[i::period]
        word, shift = divmod(i * bits, 32)
        field = np.right_shift(words[word::stride][: len(target)], np.uint32(shift), out=room[: len(target)])
        if shift + bits > 32:
            high = words[word + 1 :: stride][: len(target)]
            field |= high << np.uint32(32 - shift)
        np.copyto(target, field, casting="unsafe")  # its low byte
    codes &= np.uint8((1 << bits) - 1)
    return codes


def fields(words: np.ndarray, bits: int, count: int) -> Iterator[np.ndarray]:
    """unpack(words, ...)[order_of_fields(bits, count)] in pieces, each of which lasts until the next one.

    Where no code straddles two bytes, a piece is the codes that lie alike in their words, which one shift moves: a
    third of the time of unpack, which brings them in order.
    """
    if 8 % bits:
        yield unpack(words, bits, count)
        return
    room, mask, done = np.empty(words.shape, np.uint8), np.uint8((1 << bits) - 1), 0
    for byte in _bytes(words.view(np.uint32)):
        for shift in range(0, 8, bits):
            length = len(range(done, count, 32 // bits))
            field = np.right_shift(byte[:length], np.uint8(shift), out=room[:length])
            yield np.bitwise_and(field, mask, out=field)
            done += 1


def order_of_fields(bits: int, count: int) -> np.ndarray:
    """The codes 0 .. count in the order that `fields` gives them in: (count,) int64."""
    period = 1 if 8 % bits else 32 // bits
    return np.concatenate([np.arange(i, count, period) for i in range(period)])


def _bytes(words: np.ndarray) -> Iterator[np.ndarray]:
    """The lowest bytes of all words, then the next ones; by way of their halves, which take half the time of words."""
    half, upper = np.empty(words.shape, np.uint16), np.empty(words.shape, np.uint16)
    byte = np.empty(words.shape, np.uint8)
    for shift in (0, 16):
        half[...] = words >> np.uint32(shift) if shift else words
        byte[...] = half
        yield byte
        byte[...] = np.right_shift(half, np.uint16(8), out=upper)
        yield byte


def take(words: np.ndarray, bits: int, rows: np.ndarray) -> np.ndarray:
    """unpack(words, ...)[rows] without what is not asked for: (words, n) int32, (rows,) integers -> (rows, n) uint8."""
    words = words.view(np.uint32)
    word, shift = np.divmod(np.asarray(rows, np.int64) * bits, 32)
    field = words.take(word, axis=0)
    field >>= shift.astype(np.uint32)[:, None]
    over = np.flatnonzero(shift + bits > 32)  # codes that go on in the next word
    if over.size:
        field[over] |= words[word[over] + 1] << (32 - shift[over]).astype(np.uint32)[:, None]
    codes = field.astype(np.uint8)  # the low bytes
    codes &= np.uint8((1 << bits) - 1)
    return codes


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """The inverse of unpack: (count, n) uint8, each below 2**bits -> (words_for(count, bits), n) int32."""
    words = np.zeros((words_for(len(codes), bits), *codes.shape[1:]), np.uint32)
    period, stride = _period(bits)
    for i in range(min(period, len(codes))):
        field = codes[i::period].astype(np.uint32)
        word, shift = divmod(i * bits, 32)
        words[word::stride][: len(field)] |= field << np.uint32(shift)
        if shift + bits > 32:
            words[word + 1 :: stride][: len(field)] |= field >> np.uint32(32 - shift)
    return words.view(np.int32)


def _period(bits: int) -> tuple[int, int]:
    """After how many codes, and how many words, the layout repeats."""
    common = gcd(bits, 32)
    return 32 // common, bits // common
