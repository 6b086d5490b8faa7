"""A decode step as one CUDA graph: captured once per cache and bucket of lengths, then replayed with one launch.

Tokens and positions lie in a buffer that the captured kernels read: before a replay its new contents are copied there,
and nothing else changes. Everything that the graph writes lies in a memory pool of its own, which lives as long as the
graph. What the host decides while it captures must hold for every replay: lengths enter only as the bucket, which
decides how many blocks attention starts, and the kernels' results do not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np

from ..array import Array, array_module
from ..ranks.communicator import Communicator
from .cache import Batch, Cache

# Lengths in the first bucket; every further bucket has twice as many.
FIRST_BUCKET = 256


def bucket_of(longest: int, length: int) -> int:
    """The bucket for sequences of at most `longest` tokens in a cache of `length`: FIRST_BUCKET * 2^k, or length."""
    bucket = FIRST_BUCKET
    while bucket < longest:
        bucket *= 2
    return min(bucket, length)


class DecodeStep:
    """The graph of one step: one new token of each of `size` sequences, whose lengths stay within `bucket`.

    forward  (Batch, Cache) -> a row for each sequence: what is captured; it must neither wait for the GPU nor copy
             from the host
    """

    def __init__(self, forward: Callable[[Batch, Cache], Array], comm: Communicator, size: int, bucket: int):
        xp = comm.xp
        self._forward, self._comm, self._bucket = forward, comm, bucket
        self._inputs = xp.zeros((2, size), np.int32)  # tokens, and their positions
        self._batch = Batch(
            counts=np.ones(size, np.int64),
            positions=np.full((size, 1), bucket - 1, np.int32),
            tokens=self._inputs[0],
            sequences=xp.arange(size),
            token_positions=self._inputs[1],
            query_positions=self._inputs[1].reshape(size, 1),
            places=None,
        )
        self._graph: Any = None

    def run(self, tokens: Array, cache: Cache) -> Array:
        """What forward gives, on the current stream; the next run overwrites it. Collective.

        tokens  (size,) integers, in host memory or on the GPU
        cache   always the same: the graph holds its addresses

        The first run computes eagerly, which loads kernels and allocates workspaces, and then captures.
        """
        if array_module(tokens) is np:
            self._inputs.set(np.stack([tokens, cache.lengths]).astype(np.int32))
        else:
            self._inputs[0] = tokens
            self._inputs[1].set(cache.lengths.astype(np.int32))
        if self._graph is None:
            return self._capture(cache)
        with self._comm.calling(f"decode of {len(tokens)} tokens, captured for {self._bucket} keys"):
            self._graph.launch()
        self._comm.sent_bytes += self._sent_bytes
        return self._result

    def _capture(self, cache: Cache) -> Array:
        cuda = self._comm.xp.cuda
        current = cuda.get_current_stream()
        stream = capture_stream(self._comm.xp)
        stream.wait_event(current.record())
        with nullcontext() if stream.ptr == current.ptr else stream:
            first = self._forward(self._batch, cache)
            before = self._comm.sent_bytes
            self._pool = cuda.MemoryPool()
            with cuda.using_allocator(self._pool.malloc):
                stream.begin_capture()
                try:
                    self._result = self._forward(self._batch, cache)
                finally:
                    self._graph = stream.end_capture()
            self._sent_bytes, self._comm.sent_bytes = self._comm.sent_bytes - before, before
        current.wait_event(stream.record())
        return first


# The default streams cannot be captured: this one is, by device. One for all graphs, since each stream has workspaces.
_streams: dict[int, Any] = {}

# cudaStreamLegacy and cudaStreamPerThread; 0 is the default stream, which is one of them.
_DEFAULT_STREAMS = (0, 1, 2)


def on_default_stream(xp: Any) -> bool:
    """Whether the current stream is one that cannot be captured."""
    return xp.cuda.get_current_stream().ptr in _DEFAULT_STREAMS


def capture_stream(xp: Any) -> Any:
    """The stream to capture on: the current one, or where that is a default stream one of this module's."""
    if not on_default_stream(xp):
        return xp.cuda.get_current_stream()
    device = xp.cuda.runtime.getDevice()
    if device not in _streams:
        _streams[device] = xp.cuda.Stream(non_blocking=True)
    return _streams[device]
