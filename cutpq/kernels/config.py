"""Compile-time choices: pure functions of problem and device. Every field becomes a `constexpr int` of a kernel."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np

from ..array import bfloat16, ceil_div
from ..codecs.formats import ELEMENTS, RULES, SCALES, Element, Scale, carry_threshold
from ..ops.formulas import ACTIVATIONS

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


def activation_code(kind: str | None) -> int:
    """As tile/activation.cuh has it: 0 for none, else 1 + its place in ref.ACTIVATIONS."""
    return 0 if kind is None else 1 + ACTIVATIONS.index(kind)


@dataclass(frozen=True)
class ActivationConfig(Config):
    """activation: a thread takes eight features; GATED as in GemmConfig."""

    DTYPE: int
    ACTIVATION: int
    GATED: bool
    THREADS: int = 256

    def grid(self, features: int) -> tuple[int]:
        """For so many features of the result, a multiple of 8."""
        return (ceil_div(features // 8, self.THREADS),)


def _weighted_row_bytes(threads: int, K: int) -> int:
    """A float for every warp; a row beside its weights (tile/weighted_row.cuh); both from multiples of 16 bytes on."""
    return ceil_div(threads // 32 * 4, 16) * 16 + 4 * K


@dataclass(frozen=True)
class RmsnormConfig(Config):
    """rmsnorm_gather: a block a row."""

    DTYPE: int
    THREADS: int = 256

    def smem_bytes(self, K: int) -> int:
        """Shared memory for a row of K."""
        return _weighted_row_bytes(self.THREADS, K)


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


MOST_BLOCKS = 2048


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

    def blocks(self, n: int) -> int:
        """Blocks of the grid for n numbers: tiles of eight a thread, and of many tiles several a block.

        What a block begins with, as the bounds of its share, is then paid for once. MOST_BLOCKS fill a device twice.
        """
        return min(max(1, ceil_div(n, 8 * self.THREADS)), MOST_BLOCKS)

    def row_smem_bytes(self, K: int) -> int:
        """decode_sum_rmsnorm: shared memory for a row of K."""
        return _weighted_row_bytes(self.THREADS, K)


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

    GROUP_SIZE    rows of a group, a multiple of SLAB; 0 for one group, and where SCALE_LOOKUP is not uniform
    SCALE_LOOKUP  place in pack.SCALE_LOOKUPS: 0 uniform, 1 ascending, 2 scattered
    ZERO          the zero point of all groups, or -1 to read each group's
    ACTIVATION    of the features, see activation_code
    GATED         y = act(gate) * up, of columns that alternate by eight
    BLOCKS_PER_SM limits registers, so that this many blocks fit a multiprocessor
    """

    BLOCK_M: int
    WARPS_N: int
    WARPS_K: int
    SLAB: int
    STAGES: int
    GROUP_SIZE: int
    DTYPE: int
    SCALE_LOOKUP: int
    ZERO: int
    ACTIVATION: int
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

    @cached_property
    def tile_words(self) -> int:
        """16-byte words of a block's sums: what one slot of the workspace holds."""
        return self.BLOCK_M * self.block_n // 4

    @property
    def lane_words(self) -> int:
        """16-byte words that a lane has in a stage: codes, and where groups have one size, scales and zero points."""
        return self.SLAB // 16 + (0 if self.SCALE_LOOKUP != 0 else 2 if self.ZERO < 0 else 1)

    @cached_property
    def smem_bytes(self) -> int:
        """Shared memory of a block, as SharedMemory in gemm_w4a16.cu takes it."""
        ring_x, ring_w = 2 * self.BLOCK_M * self.block_k, 16 * self.lane_words * self.threads
        sums = 16 * self.tile_words * (self.WARPS_K // 2)
        return self.STAGES * ring_x + max(self.STAGES * ring_w, sums) + 16

    def objections(self, device: Device) -> list[str]:
        """Every reason why this configuration cannot run on a device; empty when it can."""
        each, together, limit = self.smem_bytes, self.BLOCKS_PER_SM * (self.smem_bytes + 1024), device.smem_limit
        facts = {
            f"{each} bytes of shared memory exceed the {limit} of sm_{device.arch}": each > limit,
            f"{self.BLOCKS_PER_SM} such blocks take {together} bytes of a multiprocessor": together > limit + 1024,
        }
        return [text for text, bad in facts.items() if bad]


class GemmProblem(NamedTuple):
    """What the choice of a GemmConfig depends on; group_size 0 for one group, scale_lookup as in pack.py.

    A tuple, since every product looks its own up.
    """

    M: int
    N: int
    K: int
    dtype: int
    scale_lookup: str
    group_size: int
    zero: int | None
    activation: str | None = None
    gated: bool = False


# Tokens from which dequantizing first and multiplying by the library is faster, whatever K and N. A weight of 16 bits
# costs 2.5 bytes of memory, once; the library's tensor cores gain 2 (1 / 0.6 - 1 / 0.7) flops' time on every token,
# where the two reach 0.6 and 0.7 of the peak. With 230 flops a byte (H200) that is even at 1200 tokens, with 170
# (A100) at 900 (bench/results/predicted_gemm.md).
DEQUANT_FROM = 1024


def dequant_columns(K: int) -> int:
    """Columns to dequantize at a time: the whole weight, unless it takes more than a GiB of 16 bits.

    Pieces that stay in L2 would save most of the pass through memory, but they are products of few columns, which
    leave multiprocessors idle at the end of each, and that costs more.
    """
    return max(256, (1 << 29) // K // 256 * 256)


# Shapes of blocks: warps along N, along K, and blocks on a multiprocessor. Wide ones read x less often, small ones fit
# where shared memory is short, narrow ones are so many that K need not be cut, and long ones are alone.
_WIDE, _SMALL, _SMALLER = (4, 2, 1), (2, 2, 1), (2, 2, 2)
_MEDIUM, _NARROW, _LONG, _LONG_NARROW = (2, 4, 2), (1, 8, 2), (2, 8, 1), (1, 16, 1)

# What costs time beside a multiprocessor's share of the weight, in weights that it reads meanwhile: that a block
# starts, that blocks add up (half a microsecond and two of an H200's), and each sum that passes through L2 for that,
# mostly while other blocks compute.
_START, _ADD_UP, _SUM = 32_000, 128_000, 1


@cache
def select_gemm(problem: GemmProblem, device: Device) -> tuple[GemmConfig, int]:
    """The configuration for a problem, and into how many parts K is cut: the blocks that share a column of units.

    The quickest of the first candidates that have no objection. Raises ValueError where there is none, with all
    objections.
    """
    refused = []
    for candidates in _candidates(problem):
        deep = [_with_stages(config, device) for config in candidates]
        fitting = [(config, _cuts(config, problem, device)) for config in deep if not config.objections(device)]
        if fitting:
            return min(fitting, key=lambda choice: _cost(choice[0], choice[1], problem, device))
        refused += [f"{config}: {'; '.join(config.objections(device))}" for config in deep]
    raise ValueError("no configuration of gemm_w4a16 fits:\n" + "\n".join(refused))


def _candidates(problem: GemmProblem) -> list[list[GemmConfig]]:
    """Best first; which of several is quickest depends on the problem.

    Up to 16 tokens the weight's bytes are all that counts: many of them must be in flight, and narrow blocks leave
    little to add up. From 32 tokens on x is worth reading less often, and sums fill registers. Slabs of 64 rows halve
    what is not multiplying, where groups allow them.
    """
    tokens = next(tile for tile in (8, 16, 32, 64) if tile >= min(problem.M, 64))
    shapes, small = ([_MEDIUM, _NARROW, _LONG, _LONG_NARROW], _SMALLER) if tokens <= 16 else ([_WIDE], _SMALL)
    tiers = [(32, shapes), (32, [small])]
    if problem.scale_lookup == "uniform" and problem.group_size % 64 == 0:
        tiers.insert(0, (64, shapes))
    return [[_gemm_config(problem, tokens, shape, slab) for shape in shapes] for slab, shapes in tiers]


def _with_stages(config: GemmConfig, device: Device) -> GemmConfig:
    """As deep a ring as fits, from three stages to six, or to four where other blocks wait while one does."""
    depths = [replace(config, STAGES=stages) for stages in range(4 if config.BLOCKS_PER_SM > 1 else 6, 2, -1)]
    return next((config for config in depths if not config.objections(device)), depths[-1])


def _gemm_config(problem: GemmProblem, block_m: int, shape: tuple[int, int, int], slab: int) -> GemmConfig:
    return GemmConfig(
        BLOCK_M=block_m,
        WARPS_N=shape[0],
        WARPS_K=shape[1],
        SLAB=slab,
        STAGES=3,
        GROUP_SIZE=problem.group_size,
        DTYPE=problem.dtype,
        SCALE_LOOKUP=("uniform", "ascending", "scattered").index(problem.scale_lookup),
        ZERO=-1 if problem.zero is None else problem.zero,
        ACTIVATION=activation_code(problem.activation),
        GATED=problem.gated,
        BLOCKS_PER_SM=shape[2],
    )


def _cuts(config: GemmConfig, problem: GemmProblem, device: Device) -> int:
    """Parts of K, alike in every column of units.

    Then a column is summed in the same order wherever it stands, and its bits do not change when columns are permuted:
    `tp-aware` equals `naive`.
    """
    units_k = ceil_div(problem.K, config.block_k)
    return min(range(1, units_k + 1), key=lambda cuts: _cost(config, cuts, problem, device))


def _most_blocks(config: GemmConfig, cuts: int, problem: GemmProblem, device: Device) -> int:
    """Blocks that the busiest multiprocessor has."""
    blocks = ceil_div(problem.M, config.BLOCK_M) * ceil_div(problem.N, config.block_n) * cuts
    return ceil_div(blocks, device.sms)


def _cost(config: GemmConfig, cuts: int, problem: GemmProblem, device: Device) -> int:
    """What the busiest multiprocessor does, in weights. Fewer than 16 warps leave it idle at times: an eighth."""
    most = _most_blocks(config, cuts, problem, device)
    rows = ceil_div(ceil_div(problem.K, config.block_k), cuts) * config.block_k
    weights = most * (rows * config.block_n + _START)
    if config.threads * min(config.BLOCKS_PER_SM, most) < 512:
        weights += weights // 8
    adding = _ADD_UP + most * _SUM * config.BLOCK_M * config.block_n
    return weights + (adding if cuts > 1 else 0)


def shipped(arch: int) -> list[tuple[str, Config]]:
    """Every kernel with the configurations that the choices above make for a device: what tests compile.

    Of gemm_w4a16 every shape of block for groups of 128, one shape for other groups. Group sizes and zero points that
    other weights have are compiled when they are met.
    """
    dtypes = (FLOAT16, BFLOAT16)
    groups = [("uniform", size) for size in (0, 32, 128)] + [("ascending", 0), ("scattered", 0)]
    problems = [
        GemmProblem(M, 4096, 4096, dtype, scale_lookup, size, zero)
        for M in (8, 16, 32, 64)
        for dtype in dtypes
        for scale_lookup, size in groups
        for zero in (8, None)
    ]
    activated = [
        GemmProblem(M, 4096, 4096, FLOAT16, "uniform", 128, 8, activation, gated)
        for M in (8, 16, 32, 64)
        for activation, gated in (("silu", True), ("gelu_tanh", False))
    ]
    device = Device(arch, 108)
    chosen = [select_gemm(problem, device)[0] for problem in problems + activated]
    shapes = [_with_stages(c, device) for p in problems if p.group_size == 128 for tier in _candidates(p) for c in tier]
    gemm = dict.fromkeys(chosen + [config for config in shapes if not config.objections(device)])  # each once
    dequant = [
        ("dequant", DequantConfig(bits, bits == 4, dtype, lookup))
        for bits in (2, 3, 4, 8)
        for dtype in dtypes
        for lookup in (False, True)
    ]
    rmsnorm = [("rmsnorm_gather", RmsnormConfig(dtype)) for dtype in dtypes]
    activations = [
        ("activation", ActivationConfig(dtype, activation_code(kind), gated))
        for dtype in dtypes
        for kind, gated in (("silu", True), ("gelu", False), ("gelu_tanh", False))
    ]
    attention: list[tuple[str, Config]] = [("rotate_qkv", RotateConfig(dtype)) for dtype in dtypes]
    attention += [("softmax", softmax_config(columns, dtype)) for columns in (64, 4096, 32768) for dtype in dtypes]
    others = [("gather_columns", GatherConfig()), *rmsnorm, *activations, *(("gemm_w4a16", config) for config in gemm)]
    return [*dequant, *others, *attention, *_shipped_wires()]
