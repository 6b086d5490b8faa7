"""Memory that launches on one stream use in turns: partial results, and counters that are zero between launches."""

from __future__ import annotations

from threading import get_ident
from types import ModuleType

import numpy as np

from ..array import Array

# By device, stream, thread and size. Streams need workspaces of their own because their launches overlap. Entries are
# never freed or replaced: captured CUDA graphs keep their addresses.
_workspaces: dict[tuple[int, int, int, int, int], tuple[Array, Array]] = {}

# cudaStreamPerThread: one handle, a different stream in each thread.
_PER_THREAD = 2


def workspace(xp: ModuleType, floats: int, counters: int) -> tuple[Array, Array]:
    """`floats` float32 of undefined value, and `counters` uint32 that a kernel finds zero and leaves zero.

    For launches on the current device and stream of `xp`. The first call of a size allocates, and so must not be made
    while a stream is captured; sizes are rounded up to powers of two.
    """
    if xp is np:
        return np.full(floats, np.nan, np.float32), np.zeros(counters, np.uint32)
    floats, counters = 1 << (floats - 1).bit_length(), 1 << (counters - 1).bit_length()
    stream = int(xp.cuda.get_current_stream().ptr)
    key = (xp.cuda.runtime.getDevice(), stream, get_ident() if stream == _PER_THREAD else 0, floats, counters)
    if key not in _workspaces:
        _workspaces[key] = xp.empty(floats, xp.float32), xp.zeros(counters, xp.uint32)
    return _workspaces[key]
