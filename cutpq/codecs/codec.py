"""Block codecs: arrays to bytes and back.

names.py parses the names, layout.py cuts a wire into its sections, formulas.py has the arithmetic, and engine.py the
same for NumPy arrays. The layout of the bytes, and what the options bring, are in docs/codecs.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import ModuleType

import numpy as np

from ..array import Array, array_module, bfloat16, ceil_div, check_array, round_to, to_float32, to_numpy
from ..ops.engine.choice import uses_engine
from . import engine, formulas, launch
from .formats import Bound, Scale, error_bound
from .layout import Layout, Outliers
from .names import parse

_FLOAT16_MAX = 65504.0


class Codec(Layout):
    """encode: array -> bytes; decode: bytes -> float32. Made by codec(name)."""

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
        if launch.takes(self, xp, x.size):
            return launch.encode(x.reshape(-1), self, padding=-x.size % self.block, out=wire)
        blocks, exact = self._blocks(x)
        with_engine = uses_engine(xp)

        def read(piece: slice) -> Array:
            v = engine.widen(blocks[piece]) if with_engine else to_float32(blocks[piece])
            return formulas.hadamard(v * xp.float32(_rotation(self.block)[0])) if self.rotate else v

        self._encode_pieces(read, wire, x.size, with_engine)
        if exact is not None:
            self.sections(wire, x.size)[2][:] = exact.reshape(-1).view(xp.uint8)
        elif x.size % self.block:
            wire[-1] = blocks.size - x.size
        return wire

    def in_pieces(self, xp: ModuleType) -> bool:
        """Whether encode_sum and reader take this codec and arrays of `xp`: the engine, without options."""
        return uses_engine(xp) and not self.rotate and not self.outliers

    def encode_sum(self, read: Callable[[slice], np.ndarray], wire: np.ndarray, n: int) -> None:
        """wire[:] = encode of n numbers, whole blocks, that are read when they are needed: see in_pieces.

        read(piece) -> float32 (piece.stop - piece.start,), whole blocks of them, in order; engine.PIECE at most
        """

        def of_blocks(piece: slice) -> np.ndarray:
            return read(slice(piece.start * self.block, piece.stop * self.block)).reshape(-1, self.block)

        self._encode_pieces(of_blocks, wire, n, True)

    def _encode_pieces(self, read: Callable[[slice], Array], wire: Array, n: int, with_engine: bool) -> None:
        """The elements and scales of a wire; read(piece of the blocks) -> (blocks, block) float32."""
        xp = array_module(wire)
        elements, scales, _ = self.sections(wire, n)
        scale_codes = xp.zeros(8 * ceil_div(len(elements), 8), xp.uint16 if self.scale.bits > 8 else xp.uint8)
        for piece in self._pieces(len(elements)):
            v = read(piece)
            if with_engine:
                scale_codes[piece] = engine.encode_blocks(v, self.element, self.scale, self.rule, elements[piece])
                continue
            codes, scale_codes[piece] = formulas.encode_blocks(v, self.element, self.scale, self.rule)
            elements[piece] = formulas.pack_bits(codes.reshape(-1), self.element.bits).reshape(len(v), -1)
        scales[:] = _pack_scales(scale_codes, self.scale)[: scales.size]

    def reader(self, wire: np.ndarray) -> Callable[[slice, np.ndarray], None]:
        """read(piece, out): out[:] = decode(wire)[piece], whole blocks, out as engine.decode_blocks: see in_pieces."""
        elements, scales, _ = self.sections(wire, self.count(wire))
        scale_codes = _unpack_scales(scales, self.scale)

        def read(piece: slice, out: np.ndarray) -> None:
            blocks = slice(piece.start // self.block, piece.stop // self.block)
            rows = out.reshape(-1, self.block)
            engine.decode_blocks(elements[blocks], scale_codes[blocks], self.element, self.scale, rows)

        return read

    def decode(self, wire: Array, out: Array | None = None) -> Array:
        """The numbers of a wire, in the flat order of the array that was encoded: (n,) float32.

        wire  (wire_bytes(n),) uint8, made by an equal codec
        out   (n,) float32, or float16, to which each number is rounded once more

        Raises ValueError for a length that no wire of this codec has.
        """
        xp = array_module(wire, out)
        check_array("wire", wire, ("bytes",), xp.uint8)
        n = self.count(wire)
        if out is not None:
            check_array("out", out, (n,), xp.float32, xp.float16)
        dtype = np.dtype(np.float32) if out is None else out.dtype
        if launch.takes(self, xp, n):
            v = launch.decode_sum(wire.reshape(1, -1), self, n, dtype)
        else:
            elements = len(self.sections(wire, n)[0]) * self.block
            with_engine = uses_engine(xp)
            direct = with_engine and not self.rotate and engine.decodes_to(dtype, self.scale)
            decoded = dtype if direct else np.dtype(np.float32)
            in_place = out is not None and out.dtype == decoded and out.size == elements and out.flags.c_contiguous
            v = self._decode(wire, n, out if in_place else xp.empty(elements, decoded), with_engine)
            if in_place:
                return out
        if out is None:
            return v
        out[:] = round_to(v, dtype)
        return out

    def _decode(self, wire: Array, n: int, numbers: Array, with_engine: bool) -> Array:
        """The n numbers of a wire, in `numbers`: whole blocks of float32, or what the engine decodes to, contiguous."""
        xp = array_module(wire)
        elements, scales, outliers = self.sections(wire, n)
        scale_codes = _unpack_scales(scales, self.scale)
        v = numbers.reshape(-1, self.block)
        for piece in self._pieces(len(elements)):
            if with_engine:
                engine.decode_blocks(elements[piece], scale_codes[piece], self.element, self.scale, v[piece])
            else:
                v[piece] = formulas.decode_blocks(elements[piece], scale_codes[piece], self.element, self.scale)
            if self.rotate:
                v[piece] = formulas.hadamard(v[piece]) * xp.float32(_rotation(self.block)[1])
        v = numbers[:n]
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
        self.check_rows(x.size)
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

    def _pieces(self, blocks: int) -> Iterator[slice]:
        step = max(1, engine.PIECE // self.block)
        return (slice(start, min(start + step, blocks)) for start in range(0, blocks, step))


def codec(name: str | Codec, rotate: bool = False, outliers: Array | None = None) -> Codec:
    """The codec of this name (names.py has the grammar), with its options.

    name      a name, or a Codec that is given options, if any
    rotate    multiply each block by a Hadamard matrix before encoding and by its inverse after decoding: an
              outlier is spread over its block (arXiv 2604.24088)
    outliers  (width,) bool: the columns of the last axis that are kept in float16 (arXiv 2411.07942)

    Raises ValueError with the grammar and the nearest names for a name that is none.
    """
    found = name if isinstance(name, Codec) else Codec(*parse(name))
    if outliers is not None:
        found = replace(found, outliers=_outliers(outliers))
    return replace(found, rotate=True) if rotate else found


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
    return codes.view(xp.uint8) if scale.bits > 8 else formulas.pack_bits(codes, scale.bits)


def _unpack_scales(packed: Array, scale: Scale) -> Array:
    """The codes of a wire's scales, and a few zeros after them."""
    xp = array_module(packed)
    if scale.bits > 8:
        return packed.copy().view(xp.uint16)  # a copy is aligned
    padded = xp.zeros(ceil_div(packed.size, scale.bits) * scale.bits, xp.uint8)
    padded[: packed.size] = packed
    return formulas.unpack_bits(padded, scale.bits)
