"""Block codecs: arrays to bytes and back, by name.

A codec's name is ELEM[-bBLOCK][-SCALE][-RULE], for example e2m1, int4-b8, e2m2-b16-e5m0-rceil:

    ELEM    e1m1 e2m0 e1m2 e2m1 e3m0 e2m2 e1m3 e3m1 e2m3 e3m2 e4m3 e5m2, int2 to int8
    BLOCK   8 16 32 64 128 elements that share a scale; 32 unless named
    SCALE   e8m0 e5m0 e4m0 (powers of two, saturating), e4m3, float16 (also f16, fp16); e8m0 unless named
    RULE    floor, even, rceil (see formats.RULES); floor unless named, even for a scale with a mantissa

or one of mxfp4, mxfp6-e2m3, mxfp6-e3m2, mxfp8-e4m3, mxfp8-e5m2, mxint8 and nvfp4 (e2m1-b16-e4m3, single
level: without a scale of the whole tensor). After any name, +hadamard asks for the rotation.

The layout of the bytes, and what the options bring, are in docs/codecs.md.
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from ..array import Array, array_module, bfloat16, ceil_div, check_array, to_float32, to_numpy
from . import formulas as ref
from . import launch as kernel
from .formats import BLOCKS, ELEMENTS, RULES, SCALES, Bound, Element, Scale, error_bound

_ALIASES = {
    "mxfp4": "e2m1",
    "mxfp6-e2m3": "e2m3",
    "mxfp6-e3m2": "e3m2",
    "mxfp8-e4m3": "e4m3",
    "mxfp8-e5m2": "e5m2",
    "mxint8": "int8",
    "nvfp4": "e2m1-b16-e4m3",
}
_SPELLINGS = {"f16": "float16", "fp16": "float16"}
_NAME = re.compile(r"([a-z0-9]+)(?:-b(\d+))?(?:-([a-z]+\d[a-z0-9]*))?(?:-([a-z]+))?")

# NumPy works through this many elements at a time, so that each step finds its operands in the cache.
_PIECE = 1 << 17

_FLOAT16_MAX = 65504.0


@dataclass(frozen=True)
class Outliers:
    """Columns of a last axis `width` wide that travel as float16; in their blocks they count as zero."""

    columns: tuple[int, ...]
    width: int


@dataclass(frozen=True)
class Codec:
    """encode: array -> bytes; decode: bytes -> float32. Made by codec(name). Equal codecs, equal bytes."""

    element: Element
    block: int
    scale: Scale
    rule: str
    rotate: bool = False
    outliers: Outliers | None = None

    @property
    def name(self) -> str:
        """The alias, or else the shortest name; outliers are shown, but are no part of the grammar."""
        short = _short_name(self.element, self.block, self.scale, self.rule)
        name = next((alias for alias, long in _ALIASES.items() if long == short), short)
        if self.rotate:
            name += "+hadamard"
        if self.outliers:
            name += f"+{len(self.outliers.columns)}of{self.outliers.width}"
        return name

    def __str__(self) -> str:
        return self.name

    @property
    def bits(self) -> float:
        """Bits on the wire for each element, exactly; padding comes on top."""
        outliers = 16 * len(self.outliers.columns) / self.outliers.width if self.outliers else 0.0
        return self.element.bits + self.scale.bits / self.block + outliers

    @property
    def ratio(self) -> float:
        """How many times smaller than 16 bits an element."""
        return 16 / self.bits

    @property
    def granule(self) -> int:
        """A tensor may be cut at multiples of this many elements, and its pieces encoded one by one."""
        return math.lcm(self.block, self.outliers.width) if self.outliers else self.block

    @property
    def error_bound(self) -> Bound:
        """|decode(encode(x)) - x| <= relative * max(amax, smallest) in a block whose amax is at most largest.

        Sharp without rotation. A rotation spreads each error over the block and may line all of them up:
        `block` times as much, which typical data stay far below.
        """
        bound = error_bound(self.element, self.scale, self.rule)
        if not self.rotate:
            return bound
        growth = self.block * _rotation(self.block)[0]  # |x| <= 1 becomes at most this
        return Bound(bound.relative * self.block, bound.smallest / growth, bound.largest / growth)

    def wire_bytes(self, n: int) -> int:
        """Bytes of the wire of n elements: n bits / 8 for whole blocks whose scales fill whole bytes."""
        return sum(self._section_bytes(n)) + (not self.outliers and n % self.block != 0)

    def padded(self, n: int) -> int:
        """n, or with zeros up to whole blocks: a wire of so many elements ends without a count of padding.

        Raises ValueError where outliers have another width.
        """
        self._check_rows(n)
        return n if self.outliers else ceil_div(n, self.block) * self.block

    def shares(self, n: int, ranks: int) -> list[int]:
        """How many of padded(n) elements each rank takes: whole granules, the first ranks one more.

        A last granule that outliers leave incomplete, a whole number of rows, is taken as it is.
        """
        each, more = divmod(ceil_div(self.padded(n), self.granule), ranks)
        ends = [min((r * each + min(r, more)) * self.granule, self.padded(n)) for r in range(ranks + 1)]
        return [end - start for start, end in itertools.pairwise(ends)]

    def encode(self, x: Array, out: Array | None = None) -> Array:
        """The bytes of x: each block divided by its scale, rounded to nearest even, saturated, packed.

        x    float16, bfloat16 or float32, any shape and size; with outliers, whole rows of their width
        out  (wire_bytes(x.size),) uint8

        Raises TypeError for another dtype, ValueError for rows that do not fit the outliers.
        """
        xp = array_module(x, out)
        if x.dtype not in (np.float16, bfloat16, np.float32):
            raise TypeError(f"x must be float16, bfloat16 or float32, got {x.dtype}; convert it with .astype")
        wire = xp.empty(self.wire_bytes(x.size), xp.uint8) if out is None else out
        check_array("out", wire, (self.wire_bytes(x.size),), xp.uint8)
        if kernel.takes(self, xp, x.size):
            return kernel.encode(x.reshape(-1), self, padding=-x.size % self.block, out=wire)
        blocks, exact = self._blocks(x)
        elements, scales, outliers = self._sections(wire, x.size)
        scale_codes = xp.zeros(8 * ceil_div(len(blocks), 8), xp.uint16 if self.scale.bits > 8 else xp.uint8)
        for piece in self._pieces(len(blocks)):
            v = to_float32(blocks[piece])
            if self.rotate:
                v = ref.hadamard(v * xp.float32(_rotation(self.block)[0]))
            codes, scale_codes[piece] = ref.encode_blocks(v, self.element, self.scale, self.rule)
            elements[piece] = ref.pack_bits(codes.reshape(-1), self.element.bits).reshape(len(v), -1)
        scales[:] = _pack_scales(scale_codes, self.scale)[: scales.size]
        if exact is not None:
            outliers[:] = exact.reshape(-1).view(xp.uint8)
        elif x.size % self.block:
            wire[-1] = blocks.size - x.size
        return wire

    def decode(self, wire: Array, out: Array | None = None) -> Array:
        """The numbers of a wire, in the flat order of the array that was encoded: (n,) float32.

        wire  (wire_bytes(n),) uint8, made by an equal codec
        out   (n,) float32

        Raises ValueError for a length that no wire of this codec has.
        """
        xp = array_module(wire, out)
        check_array("wire", wire, ("bytes",), xp.uint8)
        n = self._count(wire)
        if out is not None:
            check_array("out", out, (n,), xp.float32)
        v = self._decode(wire, n)
        if out is None:
            return v
        out[:] = v
        return out

    def _decode(self, wire: Array, n: int) -> Array:
        xp = array_module(wire)
        if kernel.takes(self, xp, n):
            return kernel.decode_sum(wire.reshape(1, -1), self, n, np.float32)
        elements, scales, outliers = self._sections(wire, n)
        scale_codes = _unpack_scales(scales, self.scale)
        v = xp.empty((len(elements), self.block), xp.float32)
        for piece in self._pieces(len(elements)):
            codes = ref.unpack_bits(elements[piece].reshape(-1), self.element.bits).reshape(-1, self.block)
            v[piece] = ref.decode_blocks(codes, scale_codes[piece], self.element, self.scale)
            if self.rotate:
                v[piece] = ref.hadamard(v[piece]) * xp.float32(_rotation(self.block)[1])
        v = v.reshape(-1)[:n]
        if self.outliers:
            columns = xp.asarray(self.outliers.columns)
            exact = outliers.copy().view(xp.float16)  # a copy is aligned
            v.reshape(-1, self.outliers.width)[:, columns] = exact.reshape(-1, columns.size)
        return v

    def bound(self, x: Array) -> Array:
        """What |decode(encode(x)) - x| may be for each element, in flat order: (x.size,) float64.

        Inf where the scales end or the block is not finite. See error_bound.
        """
        xp = array_module(x)
        blocks, exact = self._blocks(x)
        amax = xp.abs(to_float32(blocks)).max(axis=1).astype(xp.float64)
        limit = self.error_bound
        share = xp.where(amax <= limit.largest, limit.relative * xp.maximum(amax, limit.smallest), xp.inf)
        share = xp.repeat(share, self.block)[: x.size]
        if exact is not None and self.outliers:
            magnitude = xp.abs(exact.astype(xp.float64))
            rows = share.reshape(-1, self.outliers.width)
            rounding = xp.where(magnitude < _FLOAT16_MAX, 2.0**-11 * magnitude + 2.0**-25, xp.inf)
            rows[:, xp.asarray(self.outliers.columns)] = rounding
        return share

    def _blocks(self, x: Array) -> tuple[Array, Array | None]:
        """x in rows of a block, zeros at the end and in place of outliers; and those, (rows, k) float16."""
        xp = array_module(x)
        self._check_rows(x.size)
        flat = xp.ascontiguousarray(x).reshape(-1)
        if flat.size % self.block or self.outliers:
            padded = xp.zeros(ceil_div(flat.size, self.block) * self.block, flat.dtype)
            padded[: flat.size] = flat
            flat = padded
        exact = None
        if self.outliers:
            columns = xp.asarray(self.outliers.columns)
            rows = flat[: x.size].reshape(-1, self.outliers.width)
            v = to_float32(xp.ascontiguousarray(rows[:, columns]))
            saturated = xp.clip(v, -xp.float32(_FLOAT16_MAX), xp.float32(_FLOAT16_MAX))
            exact = xp.where(xp.isfinite(v), saturated, v).astype(xp.float16)
            rows[:, columns] = 0
        return flat.reshape(-1, self.block), exact

    def _check_rows(self, n: int) -> None:
        if self.outliers and n % self.outliers.width:
            raise ValueError(
                f"x has {n} elements, no whole number of rows of {self.outliers.width}, "
                "the width that the outlier columns were chosen for"
            )

    def _pieces(self, blocks: int) -> Iterator[slice]:
        step = max(1, _PIECE // self.block)
        return (slice(start, min(start + step, blocks)) for start in range(0, blocks, step))

    def _section_bytes(self, n: int) -> tuple[int, int, int]:
        """Bytes of the elements, the scales and the outliers of n elements."""
        blocks = ceil_div(n, self.block)
        outliers = 2 * len(self.outliers.columns) * (n // self.outliers.width) if self.outliers else 0
        return blocks * self.block * self.element.bits // 8, ceil_div(blocks * self.scale.bits, 8), outliers

    def _sections(self, wire: Array, n: int) -> tuple[Array, Array, Array]:
        """Views of a wire's elements, (blocks, bytes of one), of its scales and its outliers."""
        elements, scales, outliers = itertools.accumulate(self._section_bytes(n))
        rows = wire[:elements].reshape(-1, self.block * self.element.bits // 8)
        return rows, wire[elements:scales], wire[scales:outliers]

    def _count(self, wire: Array) -> int:
        """How many elements a wire has, by its length and, if the last block is not full, its last byte."""
        unit = self.outliers.width if self.outliers else self.block

        def whole_bytes(units: int) -> int:
            return sum(self._section_bytes(units * unit))

        units = bisect_right(range(wire.size + 2), wire.size, key=whole_bytes) - 1
        rest = wire.size - whole_bytes(units)
        if rest == 0:
            return units * unit
        padding = int(wire[-1]) if rest == 1 and units and not self.outliers else 0
        if not 0 < padding < self.block:
            raise ValueError(
                f"{self.name} makes no wire of {wire.size} bytes that ends like this one ({unit} elements "
                f"take {whole_bytes(1)} bytes): it was cut, or encoded by another codec"
            )
        return units * unit - padding


def codec(name: str | Codec, rotate: bool = False, outliers: Array | None = None) -> Codec:
    """The codec of this name (see the module for the grammar), with its options.

    name      a name, or a Codec that is given options, if any
    rotate    multiply each block by a Hadamard matrix before encoding and by its inverse after decoding: an
              outlier is spread over its block (arXiv 2604.24088)
    outliers  (width,) bool: the columns of the last axis that are kept in float16 (arXiv 2411.07942)

    Raises ValueError with the grammar and the nearest names for a name that is none.
    """
    found = name if isinstance(name, Codec) else _parse(name)
    if outliers is not None:
        found = replace(found, outliers=_outliers(outliers))
    return replace(found, rotate=True) if rotate else found


def _parse(name: str) -> Codec:
    asked, plus, option = str(name).lower().partition("+")
    words = _NAME.fullmatch(_ALIASES.get(asked, asked))
    if words and (plus + option) in ("", "+hadamard"):
        element, block, scale, rule = words[1], int(words[2] or 32), words[3] or "e8m0", words[4]
        scale = _SPELLINGS.get(scale, scale)
        if element in ELEMENTS and block in BLOCKS and scale in SCALES and rule in (None, *RULES):
            rule = rule or _usual_rule(SCALES[scale])
            return Codec(ELEMENTS[element], block, SCALES[scale], rule, rotate=bool(option))
    combinations = itertools.product(ELEMENTS.values(), BLOCKS, SCALES.values(), RULES)
    names = itertools.starmap(_short_name, combinations)
    near = difflib.get_close_matches(asked, [*_ALIASES, *names], 3)
    raise ValueError(
        f"no codec is called {name!r}; a name is ELEM[-bBLOCK][-SCALE][-RULE], where ELEM is "
        f"{_either(ELEMENTS)}, BLOCK {_either(BLOCKS)}, SCALE {_either(SCALES)}, RULE {_either(RULES)}; "
        f"or it is {_either(_ALIASES)}" + (f". Nearest: {', '.join(near)}" if near else "")
    )


def _short_name(element: Element, block: int, scale: Scale, rule: str) -> str:
    parts = [element.name]
    parts += [f"b{block}"] * (block != 32)
    parts += [scale.name] * (scale.name != "e8m0")
    parts += [rule] * (rule != _usual_rule(scale))
    return "-".join(parts)


def _either(choices: Iterable[object]) -> str:
    *most, last = map(str, choices)
    return f"{', '.join(most)} or {last}"


def _usual_rule(scale: Scale) -> str:
    return "even" if scale.mantissa_bits else "floor"


def _outliers(mask: Array) -> Outliers | None:
    mask = to_numpy(mask)
    if mask.ndim != 1 or mask.dtype != bool:
        raise ValueError(f"outliers must be a mask of columns, (width,) bool, got {mask.shape} {mask.dtype}")
    columns = tuple(np.flatnonzero(mask).tolist())
    return Outliers(columns, mask.size) if columns else None


def _rotation(block: int) -> tuple[float, float]:
    """Factors before and after: powers of two near 1/sqrt(block), exact, whose product is 1/block."""
    before = 2.0 ** -(block.bit_length() // 2)
    return before, 1 / (before * block)


def _pack_scales(codes: Array, scale: Scale) -> Array:
    xp = array_module(codes)
    return codes.view(xp.uint8) if scale.bits > 8 else ref.pack_bits(codes, scale.bits)


def _unpack_scales(packed: Array, scale: Scale) -> Array:
    """The codes of a wire's scales, and a few zeros after them."""
    xp = array_module(packed)
    if scale.bits > 8:
        return packed.copy().view(xp.uint16)  # a copy is aligned
    padded = xp.zeros(ceil_div(packed.size, scale.bits) * scale.bits, xp.uint8)
    padded[: packed.size] = packed
    return ref.unpack_bits(padded, scale.bits)
