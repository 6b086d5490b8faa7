"""Number formats of a compressed payload: elements, block scales, and the rules that choose a scale.

OCP Microscaling (MX) specification 1.0, sections 5 and 6, for E2M1, E2M3, E3M2, E4M3, E5M2, INT8 and E8M0;
the other formats follow the same construction (arXiv 2411.09510). A number is sign and magnitude; the code of
a magnitude is its exponent field above its mantissa field, so codes grow with the values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Element:
    """Field f and mantissa m mean 2^(f - bias) (1 + m / 2^M), or 2^(1 - bias) m / 2^M where f = 0.

    largest_code   code of the largest magnitude that an encoder writes; codes above it are Inf and NaN

    There is one object of each, also after pickling: they are compared and looked up as objects, which costs nothing.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    bias: int
    largest_code: int

    def __reduce__(self) -> Any:
        return _element_named, (self.name,)

    @cached_property
    def bits(self) -> int:
        """Bits of a code: sign, exponent and mantissa."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def min_exponent(self) -> int:
        """Exponent of the smallest normal number, which the subnormals share."""
        return 1 - self.bias

    @property
    def max_exponent(self) -> int:
        """floor(log2(largest)), the specification's emax."""
        return (self.largest_code >> self.mantissa_bits) - self.bias

    @property
    def largest(self) -> float:
        """The largest finite magnitude."""
        return float(magnitudes(self)[self.largest_code])


def _element(name: str) -> Element:
    """ExMy without Inf and NaN, or INTn: n bits whose magnitude has one digit before the binary point."""
    if name.startswith("int"):  # the grid of E1M(n-2); the bias makes emax 0, as INT8 has it
        exponent_bits, mantissa_bits, bias = 1, int(name[3:]) - 2, 1
    else:
        exponent_bits, mantissa_bits = int(name[1]), int(name[3])
        bias = 2 ** (exponent_bits - 1) - 1
    return Element(name, exponent_bits, mantissa_bits, bias, 2 ** (exponent_bits + mantissa_bits) - 1)


_WITHOUT_INF = ("e1m1", "e2m0", "e1m2", "e2m1", "e3m0", "e2m2", "e1m3", "e3m1", "e2m3", "e3m2")
_INTEGERS = tuple(f"int{bits}" for bits in range(2, 9))
E4M3 = Element("e4m3", 4, 3, 7, 0x7E)  # 0x7f is NaN
E5M2 = Element("e5m2", 5, 2, 15, 0x7B)  # 0x7c is Inf, above it NaN

ELEMENTS = {e.name: e for e in (*map(_element, _WITHOUT_INF), E4M3, E5M2, *map(_element, _INTEGERS))}


def _element_named(name: str) -> Element:
    return ELEMENTS[name]


@cache
def magnitudes(element: Element) -> np.ndarray:
    """The value of each code without its sign, float32; NaN for codes above the largest."""
    code = np.arange(2 ** (element.bits - 1))
    field, mantissa = code >> element.mantissa_bits, code % 2**element.mantissa_bits
    whole = np.where(field > 0, 2**element.mantissa_bits, 0) + mantissa
    value = np.ldexp(whole.astype(np.float32), np.maximum(field, 1) - element.bias - element.mantissa_bits)
    return _constant(np.where(code <= element.largest_code, value, np.float32(np.nan)))


@cache
def values(element: Element) -> np.ndarray:
    """The value of each code, float32; the sign is the highest bit."""
    return _constant(np.concatenate([magnitudes(element), -magnitudes(element)]))


@dataclass(frozen=True, eq=False)
class Scale:
    """One scale format; scales are positive, and the code that means NaN marks a block that held NaN or Inf.

    mantissa_bits   0: a power of two, 2^(code - bias), the code of all ones being NaN
    largest_code    code of the largest finite scale

    There is one object of each, as of Element.
    """

    name: str
    bits: int
    mantissa_bits: int
    bias: int
    largest_code: int
    nan_code: int

    def __reduce__(self) -> Any:
        return _scale_named, (self.name,)

    @property
    def smallest_code(self) -> int:
        """Code of the smallest scale that an encoder writes: never the zero of a format that has one."""
        return 1 if self.mantissa_bits else 0


SCALES = {
    s.name: s
    for s in (
        Scale("e8m0", 8, 0, 127, 254, 255),
        Scale("e5m0", 5, 0, 15, 30, 31),
        Scale("e4m0", 4, 0, 7, 14, 15),
        Scale("e4m3", 8, 3, 7, 0x7E, 0x7F),
        Scale("float16", 16, 10, 15, 0x7BFF, 0x7E00),
    )
}


def _scale_named(name: str) -> Scale:
    return SCALES[name]


@cache
def scale_values(scale: Scale) -> np.ndarray:
    """The value of each scale code, float32; exact down to E8M0's 2^-127, a subnormal number."""
    code = np.arange(2**scale.bits)
    if scale.name == "float16":
        return _constant(code.astype(np.uint16).view(np.float16).astype(np.float32))
    if scale.name == "e4m3":
        return _constant(values(E4M3))
    value = np.ldexp(np.float32(1), np.minimum(code, scale.largest_code) - scale.bias)
    return _constant(np.where(code <= scale.largest_code, value, np.float32(np.nan)))


def _constant(a: np.ndarray) -> np.ndarray:
    a.flags.writeable = False
    return a


BLOCKS = (8, 16, 32, 64, 128)

# How the scale X of a block follows from its largest magnitude amax; emax and largest are the element's.
#   floor   X = 2^(floor(log2 amax) - emax), the specification's section 6.3; some magnitudes saturate
#   even    the same after rounding amax to the element's mantissa width
#   rceil   X = the smallest power of two with amax <= largest X: nothing saturates
# A scale with a mantissa (e4m3, float16) is amax / largest, rounded down, to nearest even, or up.
RULES = ("floor", "even", "rceil")


def carry_threshold(element: Element, rule: str) -> float:
    """T: with amax = m 2^e and 1 <= m < 2, the scale's exponent is e - emax, and one more from m = T on.

    For rceil one more *above* T, which is a number that the element has.
    """
    if rule == "even":
        return 2 - 2.0 ** -(element.mantissa_bits + 1)
    if rule == "rceil":
        return element.largest / 2.0**element.max_exponent
    return 2.0


@dataclass(frozen=True)
class Bound:
    """|decode(encode(x)) - x| <= relative * max(amax, smallest) in a block whose amax is at most largest."""

    relative: float
    smallest: float
    largest: float


@cache
def error_bound(element: Element, scale: Scale, rule: str) -> Bound:
    """The sharp bound of one element's error, as a share of the largest magnitude of its block.

    Below `smallest` the scale has reached its lower end; above `largest` its upper end, and elements
    saturate.
    """
    if scale.mantissa_bits:
        step = 2.0**-scale.mantissa_bits
        low, high = {
            "floor": (1.0, 1 + step),
            "even": ((1 + step / 2) / (1 + step), 1 + step / 2),
            "rceil": (1 / (1 + step), 1.0),
        }[rule]
        low, high = low * element.largest, high * element.largest
        smallest = element.largest * 2.0 ** (1 - scale.bias)
        largest = element.largest * float(scale_values(scale)[scale.largest_code])
        rounding = 1 + 2.0**-20  # float32 rounds v / X, and again the decoder's product
    else:
        high = math.ldexp(carry_threshold(element, rule), element.max_exponent)
        low = high / 2
        smallest, largest = low * 2.0**-scale.bias, high * 2.0 ** (scale.largest_code - scale.bias)
        rounding = 1.0  # powers of two: both are exact

    grid = magnitudes(element)[: element.largest_code + 1].astype(np.float64)
    middles, halves = (grid[1:] + grid[:-1]) / 2, np.diff(grid) / 2

    def worst_up_to(amax: float) -> float:
        at_amax = float(np.abs(grid - amax).min())
        return max(at_amax, *halves[middles <= amax])

    # Between these candidates the error is constant or grows with amax: the share is largest at one of them.
    candidates = [low, *middles[(low < middles) & (middles < high)], high]
    relative = rounding * max(worst_up_to(amax) / amax for amax in candidates)
    return Bound(float(relative), smallest, min(largest, 2.0**127))  # above, rounding up can leave float32
