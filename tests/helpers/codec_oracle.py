"""Block codecs in slow scalar loops and exact fractions, from the text of the OCP MX specification 1.0.

Section numbers in the comments are the specification's. Nothing comes from the package; nothing is clever.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import numpy as np


@dataclass(frozen=True)
class Format:
    """What a codec's name says."""

    element: str
    block: int
    scale: str
    rule: str

    @property
    def element_bits(self) -> int:
        if self.element.startswith("int"):
            return int(self.element[3:])
        return 1 + int(self.element[1]) + int(self.element[3])

    @property
    def scale_bits(self) -> int:
        return {"e8m0": 8, "e5m0": 5, "e4m0": 4, "e4m3": 8, "float16": 16}[self.scale]


@cache
def element_value(name: str, code: int) -> Fraction | None:
    """The number that a code means (5.3), None for Inf and NaN."""
    if name.startswith("int"):  # sign and magnitude with an implied factor of 2^-(n-2) (5.3.4)
        bits = int(name[3:])
        sign, magnitude = divmod(code, 2 ** (bits - 1))
        return (-1) ** sign * Fraction(magnitude, 2 ** (bits - 2))
    E, M = int(name[1]), int(name[3])
    bias = 2 ** (E - 1) - 1
    sign, rest = divmod(code, 2 ** (E + M))
    exponent, mantissa = divmod(rest, 2**M)
    if (name == "e4m3" and rest == 127) or (name == "e5m2" and exponent == 31):
        return None
    if exponent == 0:
        magnitude = Fraction(2) ** (1 - bias) * Fraction(mantissa, 2**M)
    else:
        magnitude = Fraction(2) ** (exponent - bias) * (1 + Fraction(mantissa, 2**M))
    return (-1) ** sign * magnitude


@cache
def largest(name: str) -> Fraction:
    bits = Format(name, 32, "e8m0", "floor").element_bits
    return max(v for v in (element_value(name, c) for c in range(2 ** (bits - 1))) if v is not None)


def floor_log2(v: Fraction) -> int:
    e = 0
    while Fraction(2) ** e > v:
        e -= 1
    while Fraction(2) ** (e + 1) <= v:
        e += 1
    return e


def mantissa_bits(name: str) -> int:
    return int(name[3:]) - 2 if name.startswith("int") else int(name[3])


def smallest_exponent(name: str) -> int:
    return 0 if name.startswith("int") else 2 - 2 ** (int(name[1]) - 1)


def encode_element(name: str, v: Fraction, negative: bool) -> int:
    """Round to nearest, ties to an even count of steps, then saturate (6.3)."""
    bits = Format(name, 32, "e8m0", "floor").element_bits
    magnitude = abs(v)
    exponent = max(floor_log2(magnitude), smallest_exponent(name)) if magnitude else smallest_exponent(name)
    step = Fraction(2) ** (exponent - mantissa_bits(name))
    rounded = min(round(magnitude / step) * step, largest(name))  # round() of a Fraction takes ties to even
    code = next(c for c in range(2 ** (bits - 1)) if element_value(name, c) == rounded)
    return code + negative * 2 ** (bits - 1)


def power_scale(f: Format, amax: Fraction) -> int:
    """Exponent of the shared scale, before it is limited to the format's range."""
    emax, M = floor_log2(largest(f.element)), mantissa_bits(f.element)
    if f.rule == "floor":
        return floor_log2(amax) - emax
    if f.rule == "even":
        step = Fraction(2) ** (floor_log2(amax) - M)
        return floor_log2(round(amax / step) * step) - emax
    e = floor_log2(amax) - emax - 1
    while amax > largest(f.element) * Fraction(2) ** e:
        e += 1
    return e


def scale_value(f: Format, code: int) -> float:
    """Value of a scale code (5.4 for E8M0), NaN for the code of NaN."""
    if f.scale == "float16":
        return float(np.uint16(code).view(np.float16))
    if f.scale == "e4m3":
        value = element_value("e4m3", code)
        return math.nan if value is None else float(value)
    bias = 2 ** (f.scale_bits - 1) - 1
    return math.nan if code == 2**f.scale_bits - 1 else math.ldexp(1.0, code - bias)


def scale_code(f: Format, block: list[float]) -> int:
    if not all(math.isfinite(v) for v in block):
        return {"float16": 0x7E00, "e4m3": 0x7F}.get(f.scale, 2**f.scale_bits - 1)
    amax = max(Fraction(abs(v)) for v in block)
    if f.scale in ("e8m0", "e5m0", "e4m0"):
        bias = 2 ** (f.scale_bits - 1) - 1
        return 0 if amax == 0 else min(max(power_scale(f, amax), -bias), bias) + bias
    top = {"float16": 0x7BFF, "e4m3": 0x7E}[f.scale]
    ratio = Fraction(float(np.float32(float(amax)) / np.float32(float(largest(f.element)))))
    below = bisect_right(range(top + 1), ratio, key=lambda c: Fraction(scale_value(f, c))) - 1
    low = Fraction(scale_value(f, below))
    high = Fraction(scale_value(f, below + 1)) if below < top else None
    code = below
    if high is not None and ratio > low:
        up = {"floor": False, "rceil": True}.get(f.rule)
        if up is None:
            up = high - ratio < ratio - low or (high - ratio == ratio - low and below % 2 == 1)
        code += up
    return max(code, 1)


def encode(f: Format, x: list[float]) -> bytes:
    """All elements, all scales, and one byte that counts the padding of a last block that is not full."""
    padding = -len(x) % f.block
    padded = x + [0.0] * padding
    elements, scales = [], []
    for start in range(0, len(padded), f.block):
        block = padded[start : start + f.block]
        code = scale_code(f, block)
        X = scale_value(f, code)
        scales.append(code)
        for v in block:
            if math.isnan(X):
                elements.append(0)
                continue
            if f.scale in ("e4m3", "float16"):
                quotient = Fraction(float(np.float32(v) / np.float32(X)))
            else:
                quotient = Fraction(v) / Fraction(X)
            elements.append(encode_element(f.element, quotient, math.copysign(1.0, v) < 0))
    wire = bit_string(elements, f.element_bits) + bit_string(scales, f.scale_bits)
    return wire + (bytes([padding]) if padding else b"")


def bit_string(codes: list[int], bits: int) -> bytes:
    number = sum(code << (i * bits) for i, code in enumerate(codes))
    return number.to_bytes(math.ceil(len(codes) * bits / 8), "little")


def decode(f: Format, wire: bytes, n: int) -> list[float]:
    blocks = math.ceil(n / f.block)
    split = blocks * f.block * f.element_bits // 8
    elements = int.from_bytes(wire[:split], "little")
    scales = int.from_bytes(wire[split : split + math.ceil(blocks * f.scale_bits / 8)], "little")
    out = []
    for i in range(n):
        X = scale_value(f, (scales >> (i // f.block * f.scale_bits)) % 2**f.scale_bits)
        code = (elements >> (i * f.element_bits)) % 2**f.element_bits
        value = element_value(f.element, code)
        sign = -1.0 if code >> (f.element_bits - 1) else 1.0  # of zero, too
        with np.errstate(over="ignore"):
            number = math.nan if value is None else float(np.float32(float(value) * X))
        out.append(math.copysign(number, sign))
    return out
