"""Compile-time choices: a frozen set of constants for each kernel. Every field becomes a `constexpr int`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..array import bfloat16, ceil_div

# Shared memory that one block may take, by compute capability, in bytes.
SMEM_LIMIT = {80: 163 << 10, 86: 99 << 10, 87: 163 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}

# Kernels that count elements in 32 bits take at most so many.
MOST_ELEMENTS = 1 << 30

# Values of DTYPE, a constant of most kernels.
FLOAT16, BFLOAT16, FLOAT32 = 0, 1, 2


class Device(NamedTuple):
    """What a choice depends on: compute capability as 90, and the number of multiprocessors.

    A tuple, since every launch looks something up by it.
    """

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

    @property
    def starts_early(self) -> bool:
        """Whether the kernel is launched while the one before it may still run, see dependent_launch.py."""
        return bool(getattr(self, "PDL", False))

    def types(self) -> dict[str, int]:
        """The types that this configuration chooses, by their names in the source."""
        return {"act_t": getattr(self, "DTYPE", FLOAT16)}


def dtype_code(dtype: Any) -> int:
    """FLOAT16 or BFLOAT16; TypeError for anything else."""
    codes = {np.dtype(np.float16): FLOAT16, bfloat16: BFLOAT16}
    if np.dtype(dtype) not in codes:
        raise TypeError(f"kernels compute in float16 or bfloat16, got {np.dtype(dtype).name}")
    return codes[np.dtype(dtype)]


def payload_code(dtype: Any) -> int:
    """FLOAT16, BFLOAT16 or FLOAT32."""
    return FLOAT32 if np.dtype(dtype) == np.float32 else dtype_code(dtype)


def weighted_row_bytes(threads: int, K: int) -> int:
    """Shared memory: a float for every warp, then a row beside its weights (tile/weighted_row.cuh), 16-byte aligned."""
    return ceil_div(threads // 32 * 4, 16) * 16 + 4 * K
