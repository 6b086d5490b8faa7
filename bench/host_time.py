"""How long Python takes for a decode step, without the work itself: what bounds the eager path on a fast GPU.

    python bench/host_time.py [--codec mxfp4] [--batch 1] [--profile]

NumPy arrays take the way of CuPy's: the same checks, configurations and allocations, and each kernel is a stub that
counts its calls. What CuPy adds to a launch (a few microseconds) is left out, as are ranges of nvtx. Constant are the
address of an array, for which NumPy takes longer than CuPy, and the answer that kernels compute, which the library
looks up in the environment for NumPy's arrays only.

us_per_layer is the slope between models of 4 and of 12 blocks of the carried checkpoint, in CPU time of this process,
so that embedding, head and other processes do not count: the least of several runs. What is left of it are about 15
products, sums and kernels a layer, each of which checks its arguments, allocates its result and is named in a span.
launches counts kernels; the all-reduce is a copy, since one rank is alone.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any
from unittest.mock import patch

import harness.blas_single  # noqa: F401  before NumPy
import numpy as np
from harness.flags import CARRIED, at_least, codecs
from harness.report import header

import cutpq as cq
from cutpq import array
from cutpq.kernels import load as kernels
from cutpq.kernels import source, workspace
from cutpq.kernels.config import Config
from cutpq.ops.engine import choice
from cutpq.ranks.alone import SelfCommunicator

STEPS, RUNS = 20, 15
LENGTH = 256
REPEATS = (1, 3)  # how often the carried checkpoint's blocks are repeated
ADDED_LAYERS = 4 * (REPEATS[1] - REPEATS[0])


def main() -> int:
    """Print the time of a layer and its launches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec", type=codecs, default=(), metavar="C", help="of the all-reduces (none)")
    parser.add_argument("--batch", type=at_least(1), default=1, metavar="N", help="sequences (1)")
    parser.add_argument("--profile", action="store_true", help="also where the time goes, by function")
    args = parser.parse_args()
    print("\n".join(header(SelfCommunicator())))
    with stubs() as launches:
        codec = args.codec[0] if args.codec else None
        counts = launches_of_a_layer(codec, launches)
        us, step = measure(codec, args.batch)
        print(f"us_per_layer {us:.0f}\nlaunches_per_layer {sum(counts.values()):g}")
        for name, count in sorted(counts.items()):
            print(f"  {name} {count:g}")
        if args.profile:
            profile(step)
    return 0


@contextmanager
def stubs() -> Iterator[Counter[str]]:
    """Kernels of NumPy arrays do nothing but count; yields the counts."""
    launches = LAUNCHES
    launches.clear()

    class Stub:
        def __init__(self, name: str):
            self.name = name

        def __call__(self, *args: Any, **options: Any) -> None:
            launches[self.name] += 1

    @cache
    def load(name: str, config: Config, xp: ModuleType) -> kernels.Kernel:
        return kernels.Kernel(name, source.signature(name), kernels._types(config), Stub(name))

    @cache
    def kept(floats: int, counters: int) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(floats, np.float32), np.zeros(counters, np.uint32)

    def room(xp: ModuleType, floats: int, counters: int) -> tuple[np.ndarray, np.ndarray]:
        return kept(1 << (floats - 1).bit_length(), 1 << (counters - 1).bit_length())

    def yes(xp: ModuleType) -> bool:
        return True

    def nowhere(a: Any) -> int:
        return 0

    def no(xp: ModuleType) -> bool:
        return False

    with patch.dict(os.environ, {"CUTPQ_HOST_KERNELS": "1"}), patch.object(kernels, "load", load):
        patches = [
            each
            for wanted, instead in ((workspace.workspace, room), (choice.uses_engine, no), (array.address, nowhere))
            for each in everywhere(wanted, instead)
        ]
        patches += [patch.object(kernels, name, yes) for name in ("usable", "stays")]
        for each in patches:
            each.start()
        try:
            yield launches
        finally:
            for each in patches:
                each.stop()


LAUNCHES: Counter[str] = Counter()  # of all stubs: launches that are kept between calls hold stubs of earlier models


def everywhere(wanted: Callable[..., Any], instead: Callable[..., Any]) -> list[Any]:
    """Patches of a function in every module that knows it by its name."""
    name = wanted.__name__
    users = [module for module in list(sys.modules.values()) if getattr(module, name, None) is wanted]
    return [patch.object(module, name, instead) for module in users]


def measure(codec: cq.Codec | None, batch: int) -> tuple[float, Callable[[], None]]:
    """CPU time of a layer in us, and the step of the longer model."""
    steps = [make_step(codec, batch, repeat) for repeat in REPEATS]
    for step in steps:
        step()  # the first call fills caches
    fewer, more = (min(process_us(step) for _ in range(RUNS)) for step in steps)
    return (more - fewer) / ADDED_LAYERS, steps[1]


def launches_of_a_layer(codec: cq.Codec | None, launches: Counter[str]) -> dict[str, float]:
    """How often a layer launches each kernel."""
    counts = []
    for repeat in REPEATS:
        before = launches.copy()
        make_step(codec, 1, repeat)()
        counts.append(launches - before)
    slopes = {name: (counts[1][name] - counts[0][name]) / ADDED_LAYERS for name in counts[1]}
    return {name: slope for name, slope in slopes.items() if slope}


def make_step(codec: cq.Codec | None, batch: int, repeat: int) -> Callable[[], None]:
    """A decode step of the carried model with its blocks `repeat` times over."""
    model = cq.load_model(CARRIED, SelfCommunicator(), codec, algo="oneshot" if codec else "auto")
    model.blocks = model.blocks * repeat
    tokens, kv_cache = [[5]] * batch, model.new_cache(batch, LENGTH)

    def step() -> None:
        kv_cache.lengths[:] = LENGTH // 2
        model(tokens, kv_cache)

    return step


def process_us(step: Callable[[], None]) -> float:
    """CPU time of one step."""
    start = time.process_time()
    for _ in range(STEPS):
        step()
    return (time.process_time() - start) * 1e6 / STEPS


def profile(step: Callable[[], None]) -> None:
    """Print the functions that take most of the time themselves."""
    profiler = cProfile.Profile()
    profiler.runcall(process_us, step)
    pstats.Stats(profiler).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    sys.exit(main())
