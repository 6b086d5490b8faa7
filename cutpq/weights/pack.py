"""Weights as kernels read them: packed codes, scales in the order of their lanes, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeGuard

import numpy as np

from ..array import Array, array_module
from .weight import QuantWeight, Weight

# Rows and columns of a fragment-ordered weight are padded to multiples of this.
TILE = 64

# How a kernel finds the group of row k, whose scales it multiplies by.
UNIFORM = "uniform"  # groups of one size, one behind the other: k // group_size
ASCENDING = "ascending"  # rows in group order, groups of any size: g_idx[k], and neighbours mostly share
SCATTERED = "scattered"  # rows in any order: g_idx[k]
SCALE_LOOKUPS = (UNIFORM, ASCENDING, SCATTERED)  # numbered so in tile/gemm_problem.cuh


@dataclass(frozen=True)
class PackedWeight:
    """A QuantWeight in kernel order.

    words         uint32 (N/64, K/16, bits/4, 32, 4), fragments of mma.m16n8k16; N and K padded to multiples of 64
    bits          of a code in words, 4 or 8: see packed_bits
    scales        float16 (G, N/64, 8, 8)
    zeros         uint8, as scales
    g_idx         int32 (K,) with K padded: the group of each row; None where scale_lookup is "uniform"
    scale_lookup  one of SCALE_LOOKUPS
    group_size    rows in a group, 0 where one group holds all rows or where scale_lookup is not "uniform"
    bias          float32 (N,), or None
    zero          the zero point that all groups have in common, else None
    plans         launches on this weight, kept by ops/gemm.py

    Frozen; NumPy or CuPy, all arrays alike.
    """

    words: Array
    scales: Array
    zeros: Array
    g_idx: Array | None
    scale_lookup: str
    group_size: int
    zero: int | None
    bits: int
    K: int
    N: int
    bias: Array | None = None
    plans: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def is_ordered(self) -> bool:
        """Whether the rows of every group are contiguous."""
        return self.scale_lookup != SCATTERED

    @property
    def padded_K(self) -> int:
        """Rows that `words` holds."""
        return int(self.words.shape[1]) * 16

    @property
    def padded_N(self) -> int:
        """Columns that `words` holds."""
        return int(self.words.shape[0]) * TILE

    @property
    def nbytes(self) -> int:
        """Bytes that a product reads: codes, scales, and zeros and g_idx where they are needed."""
        zeros = 0 if self.zero is not None else self.zeros.nbytes
        return int(self.words.nbytes + self.scales.nbytes + zeros + (0 if self.g_idx is None else self.g_idx.nbytes))


def packed_bits(bits: int) -> int:
    """Bits that a code of `bits` bits takes in a PackedWeight: codes of 2 and 3 bits are kept in 4.

    A product of few tokens then reads the weight once, by gemm_w4a16, in place of three passes with 16 bits a weight.
    """
    return max(bits, 4)


def pack(w: QuantWeight) -> PackedWeight:
    """The weight in kernel order; `unpack` undoes it. Rows stay where they are: sort them first (sort_groups).

    Groups without a row are dropped where the rows are in group order, so that consecutive rows are never more than
    one group apart.

    Raises ValueError where a scale is no float16 number: kernels would have to round it.
    """
    xp = array_module(w.codes)
    if not scales_are_exact(w):
        raise ValueError(
            "kernels take scales in float16, and some of this weight are no float16 numbers: "
            "round them with .astype, or let matmul take the weight as it is"
        )
    scales, zeros, g_idx = w.scales.astype(xp.float16), w.zeros, w.g_idx
    if w.is_ordered:
        used, renumbered = xp.unique(g_idx, return_inverse=True)
        scales, zeros, g_idx = scales[used], zeros[used], renumbered.ravel().astype(xp.int32)
    scale_lookup, group_size = _scale_lookup(w, g_idx)
    common = int(zeros[0, 0]) if zeros.size and bool((zeros == zeros[0, 0]).all()) else None
    bits = packed_bits(w.bits)
    codes = _pad(w.codes, TILE, TILE)
    if scale_lookup != UNIFORM:
        tail = xp.full(
            codes.shape[0] - w.K, g_idx[-1], xp.int32
        )  # the group of padding rows: any in range, x is zero there
        g_idx = xp.concatenate([g_idx, tail])
    return PackedWeight(
        words=_to_nibbles(codes) if bits == 4 else _to_bytes(codes),
        scales=_to_lanes(scales),
        zeros=_to_lanes(zeros),
        g_idx=None if scale_lookup == UNIFORM else g_idx,
        scale_lookup=scale_lookup,
        group_size=group_size,
        zero=common,
        bits=bits,
        K=w.K,
        N=w.N,
        bias=None if w.bias is None else w.bias.astype(xp.float32),
    )


def scales_are_exact(w: QuantWeight) -> bool:
    """Whether every scale is a float16 number: float16 itself, or bfloat16 of the usual sizes."""
    xp = array_module(w.scales)
    with np.errstate(over="ignore"):
        return bool((w.scales.astype(xp.float16).astype(w.scales.dtype) == w.scales).all())


def unpack(p: PackedWeight) -> QuantWeight:
    """The weight that was packed, but for dropped groups: the same codes, and the same scale and zero for each row.

    Its bits are those of the packed codes.
    """
    xp = array_module(p.words)
    rows = xp.arange(p.K, dtype=xp.int32)
    contiguous = rows // (p.group_size or p.K)
    codes = _from_nibbles(p.words) if p.bits == 4 else _from_bytes(p.words)
    return QuantWeight(
        codes=xp.ascontiguousarray(codes[: p.K, : p.N]),
        scales=_from_lanes(p.scales)[:, : p.N],
        zeros=_from_lanes(p.zeros)[:, : p.N],
        g_idx=contiguous if p.g_idx is None else p.g_idx[: p.K],
        bits=p.bits,
        group_size=p.group_size or p.K,
        bias=p.bias,
    )


def can_interleave(weights: Sequence[Weight]) -> TypeGuard[Sequence[QuantWeight]]:
    """Whether `interleave` takes these: two quantized weights alike in all but their numbers, N a multiple of 8."""
    quantized = [w for w in weights if isinstance(w, QuantWeight)]
    if len(weights) != 2 or len(quantized) != 2:
        return False
    gate, up = quantized
    return (
        (gate.K, gate.N, gate.G, gate.bits) == (up.K, up.N, up.G, up.bits)
        and gate.N % 8 == 0
        and (gate.bias is None) == (up.bias is None)
        and bool((gate.g_idx == up.g_idx).all())
    )


def interleave(gate: QuantWeight, up: QuantWeight) -> QuantWeight:
    """One weight for gated_matmul: eight columns of gate, the eight of up that they gate, and so on.

    Both (K, N) with N a multiple of 8, of the same rows.  Raises ValueError where they differ.
    """
    if not can_interleave((gate, up)):
        raise ValueError(
            f"gate ({gate.K}, {gate.N}) and up ({up.K}, {up.N}) must have equal shapes, bits and groups, "
            "N must be a multiple of 8, and both must have a bias or none"
        )
    xp = array_module(gate.codes, up.codes)

    def both(a: Array, b: Array) -> Array:
        """Eight columns of a and eight of b, in turn."""
        pairs = xp.stack([a.reshape(*a.shape[:-1], -1, 8), b.reshape(*b.shape[:-1], -1, 8)], axis=-2)
        return pairs.reshape(*a.shape[:-1], -1)

    return replace(
        gate,
        codes=both(gate.codes, up.codes),
        scales=both(gate.scales, up.scales),
        zeros=both(gate.zeros, up.zeros),
        bias=None if gate.bias is None else both(gate.bias, up.bias),
    )


def _scale_lookup(w: QuantWeight, g_idx: Array) -> tuple[str, int]:
    """How the scales of a row are found, and the group size where there is one; g_idx has no gaps."""
    if not w.is_ordered:
        return SCATTERED, 0
    xp = array_module(g_idx)
    size = int((g_idx == 0).sum())
    if size == w.K:
        return UNIFORM, 0
    if size % 32 == 0 and bool((g_idx == xp.arange(w.K) // size).all()):
        return UNIFORM, size
    return ASCENDING, 0


def _pad(a: Array, rows: int, columns: int) -> Array:
    xp = array_module(a)
    return xp.pad(a, [(0, -a.shape[0] % rows), (0, -a.shape[1] % columns)])


# ---- fragments: of a 16 x 16 tile, lane 4 g + c/2 holds rows c, c + 1, c + 8, c + 9 of columns g and g + 8.
# In the shapes below: k16, kh (+8), c2 = c / 2, kl (+1) along K;  n64, t, h (+8), g along N. A lane's words of 4-bit
# codes have a t each, those of 8-bit codes a t and an h; four words of all lanes are neighbours.


def _to_nibbles(codes: Array) -> Array:
    xp = array_module(codes)
    K, N = codes.shape
    nibbles = codes.reshape(K // 16, 2, 4, 2, N // 64, 4, 2, 8)  # k16, kh, c2, kl, n64, t, h, g
    ordered = nibbles.transpose(4, 0, 7, 2, 5, 3, 1, 6)  # n64, k16, g, c2, t, kl, kh, h: nibble 4 kl + 2 kh + h
    packed = ordered[..., 0] | ordered[..., 1] << 4  # a byte: h 0 low, h 1 high
    return xp.ascontiguousarray(packed.reshape(N // 64, K // 16, 1, 32, 4, 4)).view(xp.uint32)[..., 0]


def _from_nibbles(words: Array) -> Array:
    xp = array_module(words)
    n64, k16 = words.shape[:2]
    packed = xp.ascontiguousarray(words)[..., None].view(xp.uint8).reshape(n64, k16, 8, 4, 4, 2, 2)
    nibbles = xp.stack([packed & 15, packed >> 4], axis=-1)  # n64, k16, g, c2, t, kl, kh, h
    return nibbles.transpose(1, 6, 3, 5, 0, 4, 7, 2).reshape(k16 * 16, n64 * 64)


def _to_bytes(codes: Array) -> Array:
    xp = array_module(codes)
    K, N = codes.shape
    octets = codes.reshape(K // 16, 2, 4, 2, N // 64, 2, 2, 2, 8)  # k16, kh, c2, kl, n64, t / 2, t % 2, h, g
    ordered = octets.transpose(4, 0, 5, 8, 2, 6, 7, 1, 3)  # n64, k16, t / 2, g, c2, t % 2, h, kh, kl
    return xp.ascontiguousarray(ordered).reshape(N // 64, K // 16, 2, 32, 4, 4).view(xp.uint32)[..., 0]


def _from_bytes(words: Array) -> Array:
    xp = array_module(words)
    n64, k16 = words.shape[:2]
    octets = xp.ascontiguousarray(words)[..., None].view(xp.uint8).reshape(n64, k16, 2, 8, 4, 2, 2, 2, 2)
    return octets.transpose(1, 7, 4, 8, 0, 2, 5, 6, 3).reshape(k16 * 16, n64 * 64)


def _to_lanes(a: Array) -> Array:
    """(G, N) -> (G, N/64, 8 g, 8): the columns g, g + 8, ... g + 56 side by side."""
    xp = array_module(a)
    padded = _pad(a, 1, TILE)
    return xp.ascontiguousarray(padded.reshape(len(a), -1, 8, 8).transpose(0, 1, 3, 2))


def _from_lanes(a: Array) -> Array:
    return a.transpose(0, 1, 3, 2).reshape(len(a), -1)
