"""The memory that launches on one stream share."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np

from cutpq.kernels import workspace as module


class FakeCuda:
    """Of CuPy what the workspace asks for, on the thread's default stream (2), which each thread has its own of."""

    empty, zeros, float32, uint32 = np.empty, np.zeros, np.float32, np.uint32
    runtime = SimpleNamespace(getDevice=lambda: 0)
    get_current_stream = staticmethod(lambda: SimpleNamespace(ptr=2))

    @property
    def cuda(self):
        return self


def test_default_streams_of_two_threads_do_not_share_partial_sums(monkeypatch):
    monkeypatch.setattr(module, "_workspaces", {})
    both_alive = threading.Barrier(2)

    def allocate(_):
        both_alive.wait(10)
        first, again = (module.workspace(FakeCuda(), 8, 1)[0] for _ in range(2))
        assert first is again
        return first

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(allocate, range(2))
    assert one is not other
