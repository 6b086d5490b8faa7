"""The first bytes of the next product's weight into L2, while a sum over the ranks travels.

The kernel stands before the sum in the same stream: it ends when it has made its requests, and a second stream would
cost two events for each sum. So it is captured with all else.

Environment:
    CUTPQ_PREFETCH=BYTES  of weights, as 8M; default 0, none: no GPU has shown yet that it is worth its launch.
                          More than about half of L2 displaces what the sum itself needs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from ..array import array_module, ceil_div
from ..kernels import load as kernels
from ..kernels.config import Config
from ..weights.pack import PackedWeight
from .gemm import Prepared

_LINE = 128  # bytes of a line of L2


@dataclass(frozen=True)
class PrefetchConfig(Config):
    """prefetch_l2; REQUEST bytes a thread: a line, or from sm_90 on what a bulk prefetch brings."""

    REQUEST: int
    THREADS: int = 128


def prefetch_config(arch: int) -> PrefetchConfig:
    """The configuration for a compute capability, as 90."""
    return PrefetchConfig(4096 if arch >= 90 else _LINE)


@cache
def wanted_bytes() -> int:
    """CUTPQ_PREFETCH. ValueError where that is no number of bytes. The variable is read once."""
    asked = os.environ.get("CUTPQ_PREFETCH", "0")
    found = re.fullmatch(r"(\d+)([KMG]?)", asked, re.ASCII)
    if not found:
        raise ValueError(f"CUTPQ_PREFETCH must be a number of bytes such as 800K or 8M, got {asked!r}; or unset it")
    return int(found[1]) << 10 * " KMG".index(found[2] or " ")


def prefetch(weights: Sequence[Prepared]) -> None:
    """Ask L2 for CUTPQ_PREFETCH bytes of these weights, evenly of their strips; on the current stream.

    Only of packed weights, in whole lines. Without the variable nothing is launched.
    """
    if not wanted_bytes():
        return
    packed = [w for w in weights if isinstance(w, PackedWeight) and w.words.size]
    strips = sum(len(w.words) for w in packed)
    for w in packed:
        xp = array_module(w.words)
        if not kernels.usable(xp):
            return
        strip_bytes = w.words.nbytes // len(w.words)
        each = min(wanted_bytes() // strips // _LINE * _LINE, strip_bytes)
        if each:
            config = prefetch_config(kernels.device(xp).arch)
            grid = ceil_div(each, config.REQUEST * config.THREADS), len(w.words)
            kernels.load("prefetch_l2", config, xp)(grid, config.THREADS, w.words, strip_bytes, each)
