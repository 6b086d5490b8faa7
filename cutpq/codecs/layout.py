"""The bytes of a codec's wire: how many there are, in which order, and where a tensor may be cut (docs/codecs.md)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache, cached_property, lru_cache
from typing import Any

from ..array import Array, ceil_div
from ..weights.shard import even_shares
from .formats import Element, Scale
from .names import shortest


@dataclass(frozen=True)
class Outliers:
    """Columns of a last axis `width` wide that travel as float16; in their blocks they count as zero."""

    columns: tuple[int, ...]
    width: int


@dataclass(frozen=True)
class Layout:
    """The facts of a codec, and what follows from them for its wires. Equal facts, equal bytes.

    element, scale  number formats of an element and of the scale of `block` of them; `rule` chooses that scale
    rotate          whether blocks are multiplied by a Hadamard matrix before they are encoded
    outliers        columns that travel as float16, if any
    """

    element: Element
    block: int
    scale: Scale
    rule: str
    rotate: bool = False
    outliers: Outliers | None = None

    @cached_property
    def name(self) -> str:
        """The alias, or else the shortest name; outliers are shown, but are no part of the grammar."""
        name = shortest(self.element, self.block, self.scale, self.rule)
        if self.rotate:
            name += "+hadamard"
        if self.outliers:
            name += f"+{len(self.outliers.columns)}of{self.outliers.width}"
        return name

    def __hash__(self) -> int:  # of all fields it would take longer than a launch that is looked up by it
        return hash(self.name)

    def __reduce__(self) -> Any:  # the facts alone, not what was found out from them
        return type(self), tuple(getattr(self, field.name) for field in fields(self))

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

    def wire_bytes(self, n: int) -> int:
        """Bytes of the wire of n elements: n bits / 8 for whole blocks whose scales fill whole bytes."""
        return sum(self._section_bytes(n)) + (not self.outliers and n % self.block != 0)

    def padded(self, n: int) -> int:
        """n, or with zeros up to whole blocks: a wire of so many elements ends without a count of padding.

        Raises ValueError where outliers have another width.
        """
        self.check_rows(n)
        return n if self.outliers else ceil_div(n, self.block) * self.block

    def shares(self, n: int, ranks: int) -> list[int]:
        """How many of padded(n) elements each rank takes: whole granules, the first ranks one more.

        A last granule that outliers leave incomplete, a whole number of rows, is taken as it is.
        """
        return list(_even_shares(self.padded(n), ranks, self.granule))

    def check_rows(self, n: int) -> None:
        """Raise ValueError where n elements are no whole number of rows of the outliers' width."""
        if self.outliers and n % self.outliers.width:
            raise ValueError(
                f"x has {n} elements, no whole number of rows of {self.outliers.width}, "
                "the width that the outlier columns were chosen for"
            )

    @cached_property
    def _section_bytes(self) -> Callable[[int], tuple[int, int, int]]:
        """Bytes of the elements, the scales and the outliers of n elements; every sum asks for the same few n."""

        def nbytes(n: int) -> tuple[int, int, int]:
            blocks = ceil_div(n, self.block)
            outliers = 2 * len(self.outliers.columns) * (n // self.outliers.width) if self.outliers else 0
            return blocks * self.block * self.element.bits // 8, ceil_div(blocks * self.scale.bits, 8), outliers

        return lru_cache(4096)(nbytes)

    def sections(self, wire: Array, n: int) -> tuple[Array, Array, Array]:
        """Views of a wire's elements, (blocks, bytes of one), of its scales and its outliers."""
        elements, scales, outliers = itertools.accumulate(self._section_bytes(n))
        rows = wire[:elements].reshape(-1, self.block * self.element.bits // 8)
        return rows, wire[elements:scales], wire[scales:outliers]

    def count(self, wire: Array) -> int:
        """How many elements a wire has, by its length and, if the last block is not full, its last byte.

        Raises ValueError for a length that no wire has, or a last byte that is no count of padding.
        """
        n, rest = self._whole_units(wire.size)
        if rest == 0:
            return n
        padding = int(wire[-1]) if rest == 1 and n and not self.outliers else 0
        if not 0 < padding < self.block:
            raise ValueError(
                f"{self.name} makes no wire of {wire.size} bytes that ends like this one ({self._unit} elements "
                f"take {sum(self._section_bytes(self._unit))} bytes): it was cut, or encoded by another codec"
            )
        return n - padding

    @property
    def _unit(self) -> int:
        """The elements that a wire has a whole number of: those of a row, or of a block."""
        return self.outliers.width if self.outliers else self.block

    @cached_property
    def _whole_units(self) -> Callable[[int], tuple[int, int]]:
        """The elements of the whole units in a wire of so many bytes, and the bytes left; sums ask for few sizes."""

        def count(nbytes: int) -> tuple[int, int]:
            # Start from the units that fit if no section were rounded up, and step down to those that do fit.
            n = (int(8 * nbytes / (self._unit * self.bits)) + 1) * self._unit
            while sum(self._section_bytes(n)) > nbytes:
                n -= self._unit
            return n, nbytes - sum(self._section_bytes(n))

        return lru_cache(4096)(count)


@cache
def _even_shares(n: int, ranks: int, granule: int) -> tuple[int, ...]:
    """weights.shard.even_shares, kept: every sum asks for the same few."""
    return tuple(even_shares(n, ranks, granule))
