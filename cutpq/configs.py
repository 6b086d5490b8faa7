"""Compile-time choices: pure functions of problem and device. Every field becomes a `constexpr int` of a kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .array import bfloat16
from .formats import ELEMENTS, RULES, SCALES, Element, Scale, carry_threshold

# Shared memory that one block may take, by compute capability, in bytes.
SMEM_LIMIT = {80: 163 << 10, 86: 99 << 10, 87: 163 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}

# Kernels that count elements in 32 bits take at most so many.
MOST_ELEMENTS = 1 << 30

# Numbers that the kernels know, as DTYPE.
FLOAT16, BFLOAT16, FLOAT32 = 0, 1, 2


@dataclass(frozen=True)
class Device:
    """What a choice depends on: compute capability as 90, and the number of multiprocessors."""

    arch: int
    sms: int

    @property
    def smem_limit(self) -> int:
        """Bytes of shared memory for one block; what every architecture since 80 has, where it is not known."""
        return SMEM_LIMIT.get(self.arch, 99 << 10)


@dataclass(frozen=True)
class Config:
    """A frozen set of constants."""

    def types(self) -> dict[str, int]:
        """The types that this configuration chooses, by their names in the source."""
        return {"act_t": getattr(self, "DTYPE", FLOAT16)}


def dtype_code(dtype: Any) -> int:
    """FLOAT16 or BFLOAT16; TypeError for anything else."""
    codes = {np.dtype(np.float16): FLOAT16, bfloat16: BFLOAT16}
    if np.dtype(dtype) not in codes:
        raise TypeError(f"kernels compute in float16 or bfloat16, got {np.dtype(dtype).name}")
    return codes[np.dtype(dtype)]


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


@dataclass(frozen=True)
class DequantConfig(Config):
    """dequant: codes of BITS, in the order of fragments or as a stream; LOOKUP finds the group of a row in g_idx."""

    BITS: int
    FRAGMENTS: bool
    DTYPE: int
    LOOKUP: bool
    THREADS: int = 128

    def grid(self, K: int, columns: int) -> tuple[int, int]:
        """A thread takes 32 rows of two columns."""
        return ceil_div(columns, 2 * self.THREADS), ceil_div(K, 32)


@dataclass(frozen=True)
class GatherConfig(Config):
    """gather_columns."""

    THREADS: int = 128

    def grid(self, M: int, columns: int, sms: int) -> tuple[int, int]:
        """Columns first; rows over more blocks until every multiprocessor has four."""
        across = ceil_div(columns, 8 * self.THREADS)
        return across, max(1, min(M, ceil_div(4 * sms, across)))


@dataclass(frozen=True)
class RmsnormConfig(Config):
    """rmsnorm_gather: a block a row."""

    DTYPE: int
    THREADS: int = 256

    def smem_bytes(self, K: int) -> int:
        """The row in 16 bits, and a float for every warp, both from multiples of 16 on."""
        return ceil_div(self.THREADS // 32 * 4, 16) * 16 + 2 * K


def payload_code(dtype: Any) -> int:
    """FLOAT16, BFLOAT16 or FLOAT32."""
    return FLOAT32 if np.dtype(dtype) == np.float32 else dtype_code(dtype)


@dataclass(frozen=True)
class WireConfig(Config):
    """The kernels of a block codec: encode, decode_sum, decode_sum_encode and decode_sum_rmsnorm.

    The facts of formats.Element and formats.Scale, as the headers in tile/ name them; RANKS are added up.
    """

    ELEMENT_BITS: int
    MANTISSA_BITS: int
    ELEMENT_BIAS: int
    LARGEST_CODE: int
    ELEMENT_LARGEST: int  # the bits of float32
    MAX_EXPONENT: int
    BLOCK: int
    SCALE_BITS: int
    SCALE_MANTISSA_BITS: int
    SCALE_BIAS: int
    SCALE_SMALLEST: int
    SCALE_LARGEST: int
    SCALE_NAN: int
    RULE: int
    CARRY_AT: int
    DTYPE: int
    RANKS: int
    THREADS: int = 256

    @property
    def scratch_bytes(self) -> int:
        """Shared memory of what encodes: two bytes for each scale of a tile."""
        return 2 * self.THREADS * 8 // self.BLOCK

    def tiles(self, n: int) -> int:
        """Blocks of the grid for n numbers: a thread takes eight."""
        return max(1, ceil_div(n, 8 * self.THREADS))

    def row_smem_bytes(self, K: int) -> int:
        """decode_sum_rmsnorm: a float for every warp and the row, both from multiples of 16 on."""
        return ceil_div(self.THREADS // 32 * 4, 16) * 16 + 2 * K


def wire_config(element: Element, block: int, scale: Scale, rule: str, dtype: int, ranks: int = 1) -> WireConfig:
    """The constants of a codec. A carry threshold T counts from T on; for rceil from the number above it on."""
    carry_at = int((carry_threshold(element, rule) - 1) * 2**23) + (rule == "rceil")
    return WireConfig(
        element.bits, element.mantissa_bits, element.bias, element.largest_code,
        int(np.float32(element.largest).view(np.uint32)), element.max_exponent, block,
        scale.bits, scale.mantissa_bits, scale.bias, scale.smallest_code, scale.largest_code, scale.nan_code,
        RULES.index(rule), carry_at, dtype, ranks,
    )  # fmt: skip


# Where a rank's slab keeps what its peers read, as tile/slab.cuh has it.
MEETINGS = 2


@dataclass(frozen=True)
class PeerConfig(WireConfig):
    """all_reduce_oneshot and all_reduce_twoshot; a PLAIN payload has no codec, and its constants mean nothing.

    STEP  0: all steps, with flags between them; else that step alone
    """

    GRID: int = 32
    STEP: int = 0
    PLAIN: bool = False

    @property
    def smem_bytes(self) -> int:
        """A word for every rank, and the scales of a tile, both from multiples of 16 on."""
        return ceil_div(4 * self.RANKS, 16) * 16 + (0 if self.PLAIN else self.scratch_bytes)

    @property
    def data_at(self) -> int:
        """Bytes of flags and epochs, before a slab's data."""
        return ceil_div(4 * (MEETINGS * self.GRID * self.RANKS + self.GRID), 256) * 256


def peer_config(
    codec: tuple[Element, int, Scale, str] | None, dtype: int, ranks: int, step: int = 0
) -> PeerConfig:
    """For the facts of a codec, or for a plain payload."""
    wire = wire_config(*(codec or (ELEMENTS["e2m1"], 32, SCALES["e8m0"], "floor")), dtype, ranks)
    return PeerConfig(**vars(wire), STEP=step, PLAIN=codec is None)


# Codecs that stand for all in the compile test: every width of an element and every format of a scale.
_SHIPPED_CODECS = (
    ("e2m1", 32, "e8m0", "floor"), ("e2m1", 16, "e4m3", "even"), ("e2m0", 8, "e4m0", "even"),
    ("e2m2", 128, "e5m0", "rceil"), ("e3m2", 32, "e8m0", "floor"), ("e4m3", 64, "float16", "rceil"),
    ("int7", 32, "e8m0", "floor"), ("int2", 8, "e8m0", "floor"),
)  # fmt: skip


def _shipped_wires() -> list[tuple[str, Config]]:
    def config(codec: tuple[str, int, str, str], dtype: int, ranks: int = 1) -> WireConfig:
        element, block, scale, rule = codec
        return wire_config(ELEMENTS[element], block, SCALES[scale], rule, dtype, ranks)

    mxfp4, dtypes = _SHIPPED_CODECS[0], (FLOAT16, BFLOAT16, FLOAT32)
    made: list[tuple[str, Config]] = [("encode", config(mxfp4, dtype)) for dtype in dtypes[1:]]
    made += [("encode", config(codec, FLOAT16)) for codec in _SHIPPED_CODECS]
    made += [("decode_sum", config(mxfp4, dtype, ranks)) for dtype in dtypes for ranks in (1, 8)]
    made += [("decode_sum", config(codec, FLOAT16, 4)) for codec in _SHIPPED_CODECS]
    made += [("decode_sum_encode", config(codec, FLOAT16, 8)) for codec in _SHIPPED_CODECS[:4]]
    facts = ELEMENTS["e2m1"], 32, SCALES["e8m0"], "floor"
    for kernel, steps in ("all_reduce_oneshot", range(3)), ("all_reduce_twoshot", range(4)):
        made += [(kernel, peer_config(facts, FLOAT16, 8, step)) for step in steps]
        made += [(kernel, peer_config(None, dtype, 4)) for dtype in dtypes]
    return made + [("decode_sum_rmsnorm", config(mxfp4, dtype, ranks)) for dtype in dtypes[:2] for ranks in (1, 8)]


def shipped() -> list[tuple[str, Config]]:
    """Every kernel with every configuration that the choices above can make: what tests compile."""
    dtypes = (FLOAT16, BFLOAT16)
    dequant = [
        ("dequant", DequantConfig(bits, bits == 4, dtype, lookup))
        for bits in (2, 3, 4, 8) for dtype in dtypes for lookup in (False, True)
    ]
    rmsnorm = [("rmsnorm_gather", RmsnormConfig(dtype)) for dtype in dtypes]
    return [*dequant, ("gather_columns", GatherConfig()), *rmsnorm, *_shipped_wires()]
