"""Named spans of a run: NVTX ranges for a reader of an Nsight Systems timeline, or seconds for a bench."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

try:
    import nvtx
except ImportError:
    nvtx = None

Seconds = dict[tuple[str, ...], float]

_of_thread = threading.local()
_NOTHING = nullcontext()


def span(name: str) -> AbstractContextManager:
    """`with span("gemm 1"):` is a range of that name on the timeline; nothing where nvtx is not installed."""
    recorder = getattr(_of_thread, "recorder", None)
    if recorder is not None:
        return recorder.span(name)
    return _NOTHING if nvtx is None else nvtx.annotate(name, domain="cutpq")


@contextmanager
def record(synchronize: Callable[[], object] = lambda: None) -> Iterator[Seconds]:
    """`with record() as seconds:` sums the time in each span of this thread, by its path: ("mlp", "all_reduce").

    synchronize  called at both ends of each span; on a GPU what waits for the stream, which makes the run slower
    """
    seconds: Seconds = {}
    _of_thread.recorder = _Recorder(seconds, synchronize)
    try:
        yield seconds
    finally:
        _of_thread.recorder = None


class _Recorder:
    def __init__(self, seconds: Seconds, synchronize: Callable[[], object]):
        self.seconds, self.synchronize = seconds, synchronize
        self.path: tuple[str, ...] = ()

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        outer, path = self.path, (*self.path, name)
        self.path = path
        self.synchronize()
        start = time.perf_counter()
        try:
            yield
        finally:
            self.synchronize()
            self.seconds[path] = self.seconds.get(path, 0.0) + time.perf_counter() - start
            self.path = outer
