"""What the main loop of gemm_w4a16 does, counted while the software device executes it (softgpu/README.md).

The same product is run over two depths K. Their difference is what the additional slabs took: the loop alone, without
what a block does once. It needs g++ and NVRTC, no GPU, and CUTPQ_HOST_KERNELS=1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cutpq.kernels import executor
from cutpq.ops.gemm import matmul
from cutpq.weights.pack import PackedWeight

# The PTX of classes of machine instructions (machine_code.CLASSES). Tensor core instructions and loads of their
# operands stand in no branch, so that as many are executed as stand in the loop. Copies and loads of scales depend on
# the slab.
PTX = {"ldgsts": "cp.async", "lds": "ld.shared", "ldsm": "ldmatrix", "mma": "mma"}
IN_NO_BRANCH = ("ldsm", "mma")
WARP_LOAD_BYTES = 512  # 16 bytes of codes a lane


@dataclass(frozen=True)
class LoopCounts:
    """Of one warp, for each 16-byte load of codes.

    instructions  PTX, all that are executed
    classes       those of PTX
    read_bytes    from global memory, for each byte of codes: codes, scales and x
    coalesced     the sectors that these bytes need over those that were moved
    conflicts     passes through shared memory beyond those that the widths need, in all
    """

    instructions: float
    classes: dict[str, float]
    read_bytes: float
    coalesced: float
    conflicts: int


def loop_counts(shallow: PackedWeight, deep: PackedWeight, M: int) -> LoopCounts:
    """Of the slabs that `deep` has and `shallow` has not; all blocks take the same way through both."""
    few, many = _launch(shallow, M), _launch(deep, M)
    loads = (deep.words.nbytes - shallow.words.nbytes) / WARP_LOAD_BYTES
    executed = {name: n - few["instructions"].get(name, 0) for name, n in many["instructions"].items()}
    read = {name: n - few["global_loads"][name] for name, n in many["global_loads"].items()}
    passes = {name: n - few["shared_loads"][name] for name, n in many["shared_loads"].items()}
    return LoopCounts(
        sum(executed.values()) / loads,
        {name: executed.get(ptx, 0) / loads for name, ptx in PTX.items()},
        read["bytes"] / (loads * WARP_LOAD_BYTES),
        read["least_sectors"] / read["sectors"],
        passes["passes"] - passes["least_passes"],
    )


def _launch(p: PackedWeight, M: int) -> dict[str, Any]:
    """The counts of one product of M tokens."""
    counts: list[dict[str, Any]] = []
    executor.settings.counts = counts
    try:
        matmul(np.ones((M, p.K), np.float16), p)
    finally:
        executor.settings.counts = None
    (line,) = counts
    return line
