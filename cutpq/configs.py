"""Compile-time choices: pure functions of problem and device. Every field becomes a `constexpr int` of a kernel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from .array import bfloat16

# Shared memory that one block may take, by compute capability, in bytes.
SMEM_LIMIT = {80: 163 << 10, 86: 99 << 10, 87: 163 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}

# Numbers that the kernels know, as DTYPE.
FLOAT16, BFLOAT16 = 0, 1


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
    """Columns to dequantize at a time: their 16-bit weights stay in a part of L2 (16 MiB)."""
    return max(256, (8 << 20) // K // 256 * 256)


# Shapes of blocks: warps along N, along K. Wide ones read x less often, narrow ones have less to add up in the end.
_WIDE, _MEDIUM, _NARROW, _SMALL = (4, 2), (2, 4), (1, 8), (2, 2)


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

    Time goes like the waves of blocks times the units that each has; starting and adding up cost about two more.
    """
    columns, units_k = ceil_div(problem.N, config.block_n), ceil_div(problem.K, config.block_k)
    at_once = max(1, device.sms * config.BLOCKS_PER_SM // ceil_div(problem.M, config.BLOCK_M))

    def cost(cuts: int) -> int:
        return ceil_div(columns * cuts, at_once) * (ceil_div(units_k, cuts) + 2)

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
    return [*dequant, ("gather_columns", GatherConfig()), *rmsnorm, *(("gemm_w4a16", config) for config in gemm)]
