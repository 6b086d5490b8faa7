"""How gemm_w4a16 is compiled and cut for a problem and a device, and from how many tokens cuBLAS multiplies instead."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import NamedTuple

from ..array import ceil_div
from ..kernels import dependent_launch
from ..kernels.config import Config, Device
from ..weights.pack import SCALE_LOOKUPS, UNIFORM
from .activation import activation_code


@dataclass(frozen=True)
class GemmConfig(Config):
    """gemm_w4a16: BLOCK_M tokens, WARPS_N strips of 64 columns by WARPS_K slabs of SLAB rows, a ring of STAGES.

    BITS          of a code: 4 or 8
    GROUP_SIZE    rows of a group, a multiple of SLAB; 0 for one group, and where SCALE_LOOKUP is not uniform
    SCALE_LOOKUP  place in pack.SCALE_LOOKUPS: 0 uniform, 1 ascending, 2 scattered
    ZERO          the zero point of all groups, or -1 to read each group's
    ACTIVATION    of the features, see activation_code
    GATED         y = act(gate) * up, of columns that alternate by eight
    BLOCKS_PER_SM limits registers, so that this many blocks fit a multiprocessor
    PDL           launched by programmatic dependent launch, see kernels/dependent_launch.py
    """

    BITS: int
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
    PDL: bool = False

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
    def lane_codes(self) -> int:
        """16-byte words of codes that a lane has in a stage."""
        return self.SLAB // 16 * self.BITS // 4

    @property
    def lane_words(self) -> int:
        """16-byte words that a lane has in a stage: codes, and where groups have one size, scales and zero points."""
        return self.lane_codes + (0 if self.SCALE_LOOKUP != 0 else 2 if self.ZERO < 0 else 1)

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
    """What the choice of a GemmConfig depends on; group_size 0 for one group, scale_lookup and bits as in pack.py.

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
    bits: int = 4


# Tokens from which dequantizing first and multiplying by cuBLAS is faster, whatever K and N, by compute capability.
# Dequantizing costs 2.5 bytes of memory a weight, once; cuBLAS then needs less time for every token: it reaches 0.82 of
# an A100's tensor peak and 0.70 of a Hopper's, mma.sync 0.71 and 0.42 to 0.45 (refit to published measurements of A800,
# H100 and H200: bench/predict/gemm.py). The two are even at about 1,130 tokens on A100, 520 on H100 and 360 on H200.
# Those without published measurements take the nearest relative. Weights of 8 bits cost 3 bytes, and are even at a
# fifth more tokens; they take the same numbers. Projected: `bench/gemm.py --sweep` measures it.
_DEQUANT_FROM = {80: 1152, 86: 1152, 87: 1152, 89: 1152}
_DEQUANT_FROM_SINCE_HOPPER = 448


@cache
def dequant_from(device: Device) -> int:
    """Tokens from which a product dequantizes the weight and calls cuBLAS; CUTPQ_DEQUANT_FROM overrides it.

    Raises ValueError where that is no number above 0. The variable is read once for each kind of device.
    """
    override = os.environ.get("CUTPQ_DEQUANT_FROM")
    if override is None:
        return _DEQUANT_FROM.get(device.arch, _DEQUANT_FROM_SINCE_HOPPER)
    if not override.isascii() or not override.isdigit() or int(override) < 1:
        raise ValueError(f"CUTPQ_DEQUANT_FROM must be a number of tokens above 0, got {override!r}; or unset it")
    return int(override)


def dequant_columns(K: int) -> int:
    """Columns to dequantize at a time: the whole weight, unless it takes more than a GiB of 16 bits.

    Pieces that stay in L2 would save most of the pass through memory, but they are products of few columns, which
    leave multiprocessors idle at the end of each, and that costs more.
    """
    return max(256, (1 << 29) // K // 256 * 256)


# Shapes of blocks: warps along N, warps along K, blocks on a multiprocessor. Wide blocks read x less often, small
# blocks fit where shared memory is short, narrow blocks fill the GPU without splitting K, long blocks run one on a
# multiprocessor.
_WIDE, _SMALL, _SMALLER = (4, 2, 1), (2, 2, 1), (2, 2, 2)
_MEDIUM, _NARROW, _LONG, _LONG_NARROW = (2, 4, 2), (1, 8, 2), (2, 8, 1), (1, 16, 1)

# Fixed costs, in half bytes of codes that one multiprocessor reads meanwhile: starting a block (half a microsecond of
# an H200), a reduction over the blocks of split-K (two microseconds), and each partial sum that passes through L2 for
# it, which other blocks' work mostly hides.
_START, _ADD_UP, _SUM = 32_000, 128_000, 1


@cache
def select_gemm(problem: GemmProblem, device: Device) -> tuple[GemmConfig, int]:
    """The configuration for a problem, and into how many parts K is split (split-K).

    The quickest of the first tier of candidates in which any has no objection. Raises ValueError where no tier has
    one, with all objections.
    """
    refused = []
    for tier in candidates(problem):
        deep = [with_stages(config, device) for config in tier]
        fitting = [(config, _cuts(config, problem, device)) for config in deep if not config.objections(device)]
        if fitting:
            config, cuts = min(fitting, key=lambda choice: _cost(choice[0], choice[1], problem, device))
            return replace(config, PDL=dependent_launch.is_wanted(device)), cuts
        refused += [f"{config}: {'; '.join(config.objections(device))}" for config in deep]
    raise ValueError("no configuration of gemm_w4a16 fits:\n" + "\n".join(refused))


def candidates(problem: GemmProblem) -> list[list[GemmConfig]]:
    """Tiers of configurations, the best tier first; which of a tier is quickest depends on the problem.

    Up to 16 tokens the time is that of reading the weight: many bytes must be in flight, and narrow blocks leave few
    partial sums to add up. From 32 tokens on wide blocks pay, which read x less often; their sums fill the registers.
    Slabs of 64 rows, where groups allow them, halve the instructions that do not multiply. Of 8 bits 32 rows are as
    many bytes.
    """
    tokens = next(tile for tile in (8, 16, 32, 64) if tile >= min(problem.M, 64))
    shapes, small = ([_MEDIUM, _NARROW, _LONG, _LONG_NARROW], _SMALLER) if tokens <= 16 else ([_WIDE], _SMALL)
    tiers = [(32, shapes), (32, [small])]
    if problem.bits == 4 and problem.scale_lookup == UNIFORM and problem.group_size % 64 == 0:
        tiers.insert(0, (64, shapes))
    return [[_gemm_config(problem, tokens, shape, slab) for shape in shapes] for slab, shapes in tiers]


def with_stages(config: GemmConfig, device: Device) -> GemmConfig:
    """The configuration with the deepest ring of stages that fits: three to six, or to four with several blocks."""
    depths = [replace(config, STAGES=stages) for stages in range(4 if config.BLOCKS_PER_SM > 1 else 6, 2, -1)]
    return next((config for config in depths if not config.objections(device)), depths[-1])


def _gemm_config(problem: GemmProblem, block_m: int, shape: tuple[int, int, int], slab: int) -> GemmConfig:
    return GemmConfig(
        BITS=problem.bits,
        BLOCK_M=block_m,
        WARPS_N=shape[0],
        WARPS_K=shape[1],
        SLAB=slab,
        STAGES=3,
        GROUP_SIZE=problem.group_size,
        DTYPE=problem.dtype,
        SCALE_LOOKUP=SCALE_LOOKUPS.index(problem.scale_lookup),
        ZERO=-1 if problem.zero is None else problem.zero,
        ACTIVATION=activation_code(problem.activation),
        GATED=problem.gated,
        BLOCKS_PER_SM=shape[2],
    )


def _cuts(config: GemmConfig, problem: GemmProblem, device: Device) -> int:
    """Into how many parts K is split, the same for every block of columns.

    Each column is then summed in the same order wherever it stands, and its bits do not change when columns are
    permuted: `tp-aware` equals `naive`.
    """
    units_k = ceil_div(problem.K, config.block_k)
    return min(range(1, units_k + 1), key=lambda cuts: _cost(config, cuts, problem, device))


def _most_blocks(config: GemmConfig, cuts: int, problem: GemmProblem, device: Device) -> int:
    """How many blocks the busiest multiprocessor runs."""
    blocks = ceil_div(problem.M, config.BLOCK_M) * ceil_div(problem.N, config.block_n) * cuts
    return ceil_div(blocks, device.sms)


def _cost(config: GemmConfig, cuts: int, problem: GemmProblem, device: Device) -> int:
    """Time of the busiest multiprocessor, in half bytes of codes. Fewer than 16 warps do not hide latency: + 1/8."""
    most = _most_blocks(config, cuts, problem, device)
    rows = ceil_div(ceil_div(problem.K, config.block_k), cuts) * config.block_k
    nibbles = most * (rows * config.block_n * config.BITS // 4 + _START)
    if config.threads * min(config.BLOCKS_PER_SM, most) < 512:
        nibbles += nibbles // 8
    adding = _ADD_UP + most * _SUM * config.BLOCK_M * config.block_n
    return nibbles + (adding if cuts > 1 else 0)
