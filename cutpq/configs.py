"""Compile-time choices: pure functions of problem and device. Every field becomes a `constexpr int` of a kernel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
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

    @property
    def wants_shared_memory(self) -> bool:
        """Whether a multiprocessor's memory serves this kernel better as shared memory than as L1."""
        return False

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


@dataclass(frozen=True)
class RotateConfig(Config):
    """rotate_qkv."""

    DTYPE: int
    THREADS: int = 128

    def grid(self, n: int) -> tuple[int]:
        """A thread takes sixteen of n numbers."""
        return (ceil_div(n, 16 * self.THREADS),)


@dataclass(frozen=True)
class SoftmaxConfig(Config):
    """softmax: a block a row."""

    DTYPE: int
    THREADS: int

    @property
    def smem_bytes(self) -> int:
        """Twice a float for every warp, both from multiples of 16 on."""
        return 2 * ceil_div(self.THREADS // 32 * 4, 16) * 16


def softmax_config(columns: int, dtype: int) -> SoftmaxConfig:
    """A warp for short rows; a thread takes eight columns at a time, and about four times."""
    threads = 32 if columns <= 1024 else 128 if columns <= 8192 else 512
    return SoftmaxConfig(dtype, threads)


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


def peer_config(codec: tuple[Element, int, Scale, str] | None, dtype: int, ranks: int, step: int = 0) -> PeerConfig:
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


@dataclass(frozen=True)
class GemmConfig(Config):
    """gemm_w4a16: BLOCK_M tokens, WARPS_N strips of 64 columns by WARPS_K slabs of SLAB rows, a ring of STAGES.

    GROUP_SIZE    rows of a group, a multiple of SLAB; 0 for one group, and where ORDER is not grouped
    ORDER         0 grouped, 1 local, 2 unordered
    ZERO          the zero point of all groups, or -1 to read each group's
    GATED         y = silu(gate) * up, of columns that alternate by eight
    BLOCKS_PER_SM limits registers, so that this many blocks fit a multiprocessor
    """

    BLOCK_M: int
    WARPS_N: int
    WARPS_K: int
    SLAB: int
    STAGES: int
    GROUP_SIZE: int
    DTYPE: int
    ORDER: int
    ZERO: int
    GATED: bool
    BLOCKS_PER_SM: int

    @property
    def wants_shared_memory(self) -> bool:
        """Whether a multiprocessor's memory serves this kernel better as shared memory than as L1."""
        return True

    @property
    def block_n(self) -> int:
        """Columns of a unit."""
        return 64 * self.WARPS_N

    @property
    def block_k(self) -> int:
        """Rows of a unit."""
        return self.SLAB * self.WARPS_K

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.WARPS_N * self.WARPS_K

    @property
    def tile_words(self) -> int:
        """16-byte words of a block's sums: what one slot of the workspace holds."""
        return self.BLOCK_M * self.block_n // 4

    @property
    def scale_lines(self) -> int:
        """Lines of scales in a unit, as in tile/scales_grouped.cuh; none where they do not pass shared memory."""
        if self.ORDER != 0:
            return 0
        return 1 if self.GROUP_SIZE % self.block_k == 0 else self.WARPS_K

    @property
    def smem_bytes(self) -> int:
        """Shared memory of a block, as SharedMemory in gemm_w4a16.cu takes it."""
        scales = self.scale_lines * self.block_n
        zeros = scales if self.ZERO < 0 else 0
        stage = 2 * self.BLOCK_M * self.block_k + self.block_n * self.block_k // 2 + 2 * scales + zeros
        return self.STAGES * stage + 16 * self.tile_words * (self.WARPS_K // 2) + 16

    def objections(self, device: Device) -> list[str]:
        """Every reason why this configuration cannot run on a device; empty when it can."""
        each, together, limit = self.smem_bytes, self.BLOCKS_PER_SM * (self.smem_bytes + 1024), device.smem_limit
        facts = {
            f"{each} bytes of shared memory exceed the {limit} of sm_{device.arch}": each > limit,
            f"{self.BLOCKS_PER_SM} such blocks take {together} bytes of a multiprocessor": together > limit + 1024,
        }
        return [text for text, bad in facts.items() if bad]


@dataclass(frozen=True)
class GemmProblem:
    """What the choice of a GemmConfig depends on; group_size 0 for one group, order as in pack.py."""

    M: int
    N: int
    K: int
    dtype: int
    order: str
    group_size: int
    zero: int | None
    gated: bool = False


# Tokens from which dequantizing first and multiplying by the library is faster.
DEQUANT_FROM = 256


def dequant_columns(K: int) -> int:
    """Columns to dequantize at a time: their 16-bit weights stay in a part of L2 (16 MiB) where K is small.

    At least 4096, which are 32 tiles of a product for each 128 tokens: fewer would leave multiprocessors idle, and
    that costs more than weights that leave L2.
    """
    return max(4096, (8 << 20) // K // 256 * 256)


# Shapes of blocks: warps along N, along K. Wide ones read x less often; small ones fit where shared memory is short.
_WIDE, _MEDIUM, _SMALL = (4, 2), (2, 4), (2, 2)


@cache
def select_gemm(problem: GemmProblem, device: Device) -> tuple[GemmConfig, int]:
    """The configuration for a problem, and the number of blocks that share its columns and rows.

    The first candidate without an objection. Raises ValueError where there is none, with all objections.
    """
    refused = []
    for config in _candidates(problem):
        objections = config.objections(device)
        if not objections:
            return config, _blocks(config, problem, device)
        refused += [f"{config}: {'; '.join(objections)}"]
    raise ValueError("no configuration of gemm_w4a16 fits:\n" + "\n".join(refused))


def _candidates(problem: GemmProblem) -> list[GemmConfig]:
    """Best first. Up to 16 tokens the weight's bytes are all that counts: many of them must be in flight, and
    narrow blocks leave little to add up. From 32 tokens on x is worth reading less often, and sums fill registers.
    Slabs of 64 rows halve what is not multiplying, where groups allow them.
    """
    if problem.M <= 8:
        shapes = [(8, _MEDIUM, 64, 4, 2), (8, _MEDIUM, 32, 4, 2), (8, _SMALL, 32, 4, 2)]
    elif problem.M <= 16:
        shapes = [(16, _MEDIUM, 64, 3, 2), (16, _MEDIUM, 32, 4, 2), (16, _SMALL, 32, 4, 2)]
    elif problem.M <= 32:
        shapes = [(32, _WIDE, 64, 4, 1), (32, _WIDE, 32, 4, 1), (32, _SMALL, 32, 4, 1)]
    else:
        shapes = [(64, _WIDE, 64, 3, 1), (64, _WIDE, 32, 4, 1), (64, _SMALL, 32, 3, 1)]
    if problem.order != "grouped" or problem.group_size % 64:
        shapes = [shape for shape in shapes if shape[2] == 32]
    return [_gemm_config(problem, *shape) for shape in shapes]


def _gemm_config(
    problem: GemmProblem, block_m: int, warps: tuple[int, int], slab: int, stages: int, blocks: int
) -> GemmConfig:
    return GemmConfig(
        BLOCK_M=block_m,
        WARPS_N=warps[0],
        WARPS_K=warps[1],
        SLAB=slab,
        STAGES=stages,
        GROUP_SIZE=problem.group_size,
        DTYPE=problem.dtype,
        ORDER=("grouped", "local", "unordered").index(problem.order),
        ZERO=-1 if problem.zero is None else problem.zero,
        GATED=problem.gated,
        BLOCKS_PER_SM=blocks,
    )


def _blocks(config: GemmConfig, problem: GemmProblem, device: Device) -> int:
    """As many for every column of units, so that K is cut at the same rows in each.

    Then a column is summed in the same order wherever it stands, and its bits do not change when columns are permuted:
    `tp-aware` equals `naive`. The kernel takes any number. As many blocks as run at once would fill the device with
    any shape, which is worth most from 32 tokens on, but cut each column elsewhere.

    Time goes like the waves of blocks times the rows that each has; starting and adding up cost about 256 more.
    """
    columns, units_k = ceil_div(problem.N, config.block_n), ceil_div(problem.K, config.block_k)
    at_once = max(1, device.sms * config.BLOCKS_PER_SM // ceil_div(problem.M, config.BLOCK_M))

    def cost(cuts: int) -> int:
        return ceil_div(columns * cuts, at_once) * (ceil_div(units_k, cuts) * config.block_k + 256)

    return columns * min(range(1, units_k + 1), key=cost)


def shipped(arch: int) -> list[tuple[str, Config]]:
    """Every kernel with the configurations that the choices above make for a device: what tests compile.

    Group sizes and zero points that other weights have are compiled when they are met.
    """
    dtypes = (FLOAT16, BFLOAT16)
    groups = [("grouped", size) for size in (0, 32, 128)] + [("local", 0), ("unordered", 0)]
    problems = [
        GemmProblem(M, 4096, 4096, dtype, order, size, zero)
        for M in (8, 16, 32, 64)
        for dtype in dtypes
        for order, size in groups
        for zero in (8, None)
    ]
    gated = [GemmProblem(M, 4096, 4096, FLOAT16, "grouped", 128, 8, gated=True) for M in (8, 16, 32, 64)]
    gemm = dict.fromkeys(select_gemm(problem, Device(arch, 108))[0] for problem in problems + gated)  # each once
    dequant = [
        ("dequant", DequantConfig(bits, bits == 4, dtype, lookup))
        for bits in (2, 3, 4, 8)
        for dtype in dtypes
        for lookup in (False, True)
    ]
    rmsnorm = [("rmsnorm_gather", RmsnormConfig(dtype)) for dtype in dtypes]
    attention: list[tuple[str, Config]] = [("rotate_qkv", RotateConfig(dtype)) for dtype in dtypes]
    attention += [("softmax", softmax_config(columns, dtype)) for columns in (64, 4096, 32768) for dtype in dtypes]
    others = [("gather_columns", GatherConfig()), *rmsnorm, *(("gemm_w4a16", config) for config in gemm)]
    return [*dequant, *others, *attention, *_shipped_wires()]
