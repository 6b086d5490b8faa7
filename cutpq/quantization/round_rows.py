"""A block of rows rounded one after the other: the loop of GPTQ and of coordinate descent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..array import Array, array_module, ceil_div, check_array
from ..kernels import load as kernels
from ..kernels.config import Config
from . import formulas

# Rows that fit a block's shared memory on every architecture, beside others on the same multiprocessor.
MOST_ROWS = 128

_LANES = 4


@dataclass(frozen=True)
class RoundRowsConfig(Config):
    """round_rows."""

    THREADS: int = 128

    @property
    def columns(self) -> int:
        """Columns of a block."""
        return self.THREADS // _LANES

    def smem_bytes(self, rows: int) -> int:
        """Shared memory of a block: its rows, each padded by eight numbers."""
        return 4 * rows * (self.columns + 8)


def round_rows(
    v: Array, coupling: Array, scales: Array, zeros: Array, group: Array, bits: int, before: Array | None = None
) -> tuple[Array, Array, Array]:
    """See formulas.round_rows, whose bits these are: by a kernel for CuPy arrays of at most MOST_ROWS rows.

    v is changed by the formula and not by the kernel: it must not be used afterwards. Raises ValueError or TypeError
    for arrays that do not fit.
    """
    xp = array_module(v, coupling, scales, zeros, group, before)
    R, N = check_array("v", v, ("R", "N"), np.float32).shape
    G, _ = check_array("scales", scales, ("G", N), np.float32).shape
    check_array("zeros", zeros, (G, N), np.float32)
    check_array("coupling", coupling, (R, R), np.float32)
    check_array("group", group, (R,), np.int32)
    if before is not None:
        check_array("before", before, (R, N), np.float32)
    if not N or R > MOST_ROWS or not kernels.usable(xp):
        return formulas.round_rows(v, coupling, scales, zeros, group, bits, before)
    codes, q, e = xp.empty((R, N), xp.uint8), xp.empty((R, N), xp.float32), xp.empty((R, N), xp.float32)
    v, coupling, scales, zeros, group = (xp.ascontiguousarray(a) for a in (v, coupling, scales, zeros, group))
    before = None if before is None else xp.ascontiguousarray(before)
    config = RoundRowsConfig()
    kernel = kernels.load("round_rows", config, xp)
    kernel(
        (ceil_div(N, config.columns),), config.THREADS, v, coupling, scales, zeros, group, before, codes, q, e, R, N,
        2**bits - 1, smem_bytes=config.smem_bytes(R),
    )  # fmt: skip
    return codes, q, e
