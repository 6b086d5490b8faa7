"""How long a GPU takes for something short, and the ceilings of the run: copy, empty kernel, the library's peak.

With NumPy, times are wall time, for the tests of the benches.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

REPLAYS = 3
SPIN = 'extern "C" __global__ void spin(long long cycles) { long long t = clock64(); while (clock64() - t < cycles); }'
EMPTY = 'extern "C" __global__ void empty() {}'
SPIN_CYCLES = 20_000_000  # about ten milliseconds, in which the host queues all calls

NEEDS_GPU = "needs a GPU and CuPy: pip install 'cutpq[cuda13]' (or cuda12) on a machine with an NVIDIA GPU"


class NoGpu(RuntimeError):
    """There is nothing to measure on; the message says what it takes."""


def gpu_module() -> ModuleType:
    """CuPy with a GPU that answers. Raises NoGpu."""
    try:
        import cupy
    except ImportError as error:
        raise NoGpu(f"{NEEDS_GPU} ({error})") from None
    try:
        cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise NoGpu(f"{NEEDS_GPU} ({error})") from None
    return cupy


@dataclass(frozen=True)
class Ceilings:
    """What nothing on this GPU can beat; None where there is no GPU to ask.

    copy_gb_s      bytes read and written by a copy of 1 GiB
    launch_us      an empty kernel in a graph of many
    library_tflops an fp16 product of 8192 cubed
    l2_bytes       of the device; 0 in a smoke run, whose operands need not be more than that
    """

    copy_gb_s: float | None
    launch_us: float | None
    library_tflops: float | None
    l2_bytes: int


def ceilings(xp: ModuleType, smoke: bool = False) -> Ceilings:
    """Measured now; in a smoke run of sizes so small that they say nothing."""
    if xp is np:
        return Ceilings(None, None, None, 0)
    nbytes, side = (1 << 16, 128) if smoke else (1 << 30, 8192)
    copy_us = _copy_us(xp.zeros(nbytes // 4, xp.float32), xp)
    empty = xp.RawKernel(EMPTY, "empty")
    launch = graph_us(lambda i: empty((1,), (32,), ()), 100, xp)
    a, b = (noise((side, side), xp) for _ in range(2))
    c = xp.empty_like(a)
    product_us = queued_us(lambda i: xp.matmul(a, b, out=c), 5, xp)
    tflops = 2 * side**3 / product_us / 1e6
    l2_bytes = 0 if smoke else int(xp.cuda.Device().attributes["L2CacheSize"])
    return Ceilings(2 * nbytes / copy_us / 1e3, launch, tflops, l2_bytes)


def noise(shape: tuple[int, ...], xp: ModuleType) -> Any:
    """Random float16 numbers, a million of them repeated: a product of constants draws less power and clocks higher."""
    numbers = np.random.default_rng(0).standard_normal(1 << 20).astype(np.float16) * np.float16(0.05)
    return xp.resize(xp.asarray(numbers), shape)


def _copy_us(source: Any, xp: ModuleType) -> float:
    target = xp.empty_like(source)
    return queued_us(lambda i: xp.copyto(target, source), 8, xp)


def graph_us(call: Callable[[int], Any], count: int, xp: ModuleType) -> float:
    """Time of one of call(0) .. call(count - 1), captured in a graph and replayed; the median of REPLAYS.

    Every call runs once before: compiling and allocating are no part of it, and capture allows neither.
    """
    if xp is np:
        return _wall_us(call, count)
    stream = _stream(xp)
    xp.cuda.get_current_stream().synchronize()  # work on the current stream that makes the operands
    with stream:
        for i in range(count):
            call(i)
        stream.begin_capture()
        for i in range(count):
            call(i)
        graph = stream.end_capture()
        graph.launch(stream)
        stream.synchronize()
        return statistics.median(_between_events(lambda: graph.launch(stream), xp) for _ in range(REPLAYS)) / count


def spin(xp: ModuleType, time_us: float) -> None:
    """Keep the current stream busy for about so long, at the GPU's nominal clock."""
    runtime = xp.cuda.runtime
    khz = runtime.deviceGetAttribute(runtime.cudaDevAttrClockRate, runtime.getDevice()) or 1_500_000
    xp.RawKernel(SPIN, "spin")((1,), (1,), (np.int64(time_us * khz / 1e3),))


def queued_us(call: Callable[[int], Any], count: int, xp: ModuleType) -> float:
    """The same without a graph, which CuPy's cuBLAS refuses: the GPU spins until the host has queued all calls."""
    if xp is np:
        return _wall_us(call, count)
    spin = xp.RawKernel(SPIN, "spin")
    for i in range(count):
        call(i)

    def once() -> float:
        spin((1,), (1,), (np.int64(SPIN_CYCLES),))
        return _between_events(lambda: [call(i) for i in range(count)], xp)

    return statistics.median(once() for _ in range(REPLAYS)) / count


@cache
def _stream(xp: ModuleType) -> Any:
    """One for all graphs: the library keeps a workspace for every stream."""
    return xp.cuda.Stream(non_blocking=True)


def _between_events(run: Callable[[], Any], xp: ModuleType) -> float:
    begin, end = xp.cuda.Event(), xp.cuda.Event()
    begin.record()
    run()
    end.record()
    end.synchronize()
    return xp.cuda.get_elapsed_time(begin, end) * 1e3


def _wall_us(call: Callable[[int], Any], count: int) -> float:
    start = time.perf_counter()
    for i in range(count):
        call(i)
    return (time.perf_counter() - start) * 1e6 / count
