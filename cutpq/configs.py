"""Compile-time choices: pure functions of problem and device. Every field becomes a `constexpr int` of a kernel."""

from __future__ import annotations

from dataclasses import dataclass
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


def shipped() -> list[tuple[str, Config]]:
    """Every kernel with every configuration that the choices above can make: what tests compile."""
    dtypes = (FLOAT16, BFLOAT16)
    dequant = [
        ("dequant", DequantConfig(bits, bits == 4, dtype, lookup))
        for bits in (2, 3, 4, 8) for dtype in dtypes for lookup in (False, True)
    ]
    rmsnorm = [("rmsnorm_gather", RmsnormConfig(dtype)) for dtype in dtypes]
    return [*dequant, ("gather_columns", GatherConfig()), *rmsnorm]
