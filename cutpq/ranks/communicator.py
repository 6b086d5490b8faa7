"""Communicator: the ranks, the collectives between them, and how many bytes those send.

A backend moves bytes from rank to rank; shapes, dtypes, checks and sums are the same for all backends and stand here.
Every rank must call the same collectives in the same order.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from itertools import accumulate
from operator import index
from types import ModuleType
from typing import Any

import numpy as np

from ..array import Array, array_module, bfloat16
from ..weights.shard import even_shares
from .failures.abort import at_job_end
from .failures.patience import patience_s
from .failures.watch import Channel, Watch
from .sums import add, round_sum


class Communicator(ABC):
    """Some ranks, as one of them sees the others.

    rank, size   this rank's number and the number of ranks
    backend      "self", "threads", "mpi", "nccl", "ipc" or "host", and the `reason` why it was chosen
    xp, device   numpy or cupy: where this rank computes, and the number of its GPU (None without)
    sent_bytes   payload that this rank has sent to other ranks by all_gather, all_to_all and all_reduce;
                 its own part stays at home and is not counted, nor are barrier and bcast
    node_of      the node (machine) of each rank: any number, equal where ranks share a node
    one_node     whether all ranks share a node
    origin       each rank's number in the communicator of all ranks, from which this one was split
    cable_bytes  the part of sent_bytes that went to ranks of other nodes
    calls, call  how many collectives this rank has called, and the last of them in words; one that is made of others
                 counts once
    watch        the thread that compares these calls with the other ranks', if there is one
    """

    backend: str
    takes_any_module = False  # True where NumPy and CuPy arrays are equally welcome
    waits_on_host = True  # False where ranks wait for each other on their GPUs alone
    can_capture = False  # True where a CUDA graph can hold sums of floats
    can_capture_exchanges = False  # True where it can hold all_gather and all_to_all too, on a stream of its own

    def __init__(
        self,
        rank: int,
        size: int,
        reason: str,
        xp: ModuleType = np,
        device: int | None = None,
        node_of: Sequence[int] | None = None,
        origin: Sequence[int] | None = None,
    ):
        self.rank, self.size, self.reason = rank, size, reason
        self.xp, self.device = xp, device
        self.node_of = tuple(node_of or [0] * size)
        self.one_node = len(set(self.node_of)) == 1
        self._on_other_nodes = [other for other in range(size) if self.node_of[other] != self.node_of[rank]]
        self.origin = tuple(origin or range(size))
        self.sent_bytes = self.cable_bytes = 0
        self.calls, self.call = 0, "nothing yet"
        self._inside_call = False
        self.watch: Watch | None = None

    def __repr__(self) -> str:
        return f"<rank {self.rank} of {self.size}, backend {self.backend}: {self.reason}>"

    def reset_sent(self) -> None:
        """Count `sent_bytes` and `cable_bytes` from zero again."""
        self.sent_bytes = self.cable_bytes = 0

    def count_sent(self, nbytes: Sequence[int]) -> None:
        """Add what this rank sends to each rank to `sent_bytes` and `cable_bytes`; its own part counts as nothing."""
        self.sent_bytes += sum(nbytes) - nbytes[self.rank]
        if self._on_other_nodes:
            self.cable_bytes += sum([nbytes[rank] for rank in self._on_other_nodes])

    def calling(self, what: str) -> AbstractContextManager[None]:
        """Count and report a collective for as long as the block lasts; one inside another is not counted.

        what  the call in words: the same on all ranks, if they make the same call
        """
        if self._inside_call:
            return _PART_OF_A_CALL
        self.calls, self.call = self.calls + 1, what
        if self.watch:
            self.watch.called(what)
        return _Call(self)

    @property
    def kind(self) -> str:
        """The name of the call that this rank is in."""
        return self.call.partition(" of ")[0]

    def open_channel(self) -> Channel | None:
        """A channel to rank 0 for a thread of each rank; None where this backend has none. Collective."""
        return None

    def start_watch(self, control: Communicator | None = None) -> None:
        """From now on a thread of each rank compares this communicator's calls with the others'. Collective.

        control  the same ranks by a backend that has a channel, where this one has none

        Does nothing for one rank, or without a channel. Where ranks wait for each other on the host, they find out
        themselves who is late: then the watch looks only for calls that differ.
        """
        channel = (control or self).open_channel() if self.size > 1 else None
        if channel is not None:
            self.watch = Watch(self.rank, self.size, channel, math.inf if self.waits_on_host else patience_s())
            at_job_end(self.watch.end)

    @abstractmethod
    def barrier(self) -> None:
        """Return when every rank has come here (and its GPU work is done)."""

    @abstractmethod
    def bcast(self, obj: Any, root: int = 0) -> Any:
        """The picklable object that rank `root` passed, on every rank. Raises ValueError for a root that is no rank."""

    @abstractmethod
    def split(self, color: int, key: int = 0) -> Communicator:
        """A communicator of the ranks with the same `color`, ordered by `key`, then by rank.

        Raises ValueError for a negative color.
        """

    def all_gather(self, x: Array, counts: Sequence[int] | None = None) -> Array:
        """Every rank's x, on every rank.

        Without counts: x of the same shape and dtype everywhere -> (size, *x.shape).
        With counts: x (counts[rank],) -> (sum(counts),), the pieces in rank order; a count may be 0.

        Sends (size - 1) * x.nbytes. Raises ValueError or TypeError for an x that does not fit.
        """
        self._check_array(x)
        if counts is None:
            pieces, shape = [x.size] * self.size, (self.size, *x.shape)
        else:
            pieces = self._check_counts("counts", counts)
            if x.shape != (pieces[self.rank],):
                raise ValueError(
                    f"x on rank {self.rank} must have shape (counts[{self.rank}],) = ({pieces[self.rank]},), "
                    f"got {tuple(x.shape)}"
                )
            shape = (sum(pieces),)
        self.count_sent([x.nbytes] * self.size)
        with self.calling(f"all_gather of {in_words(x) if counts is None else pieces}"):
            out = self._all_gather(as_bytes(x), [n * x.itemsize for n in pieces])
        return (out if x.dtype == np.uint8 else out.view(x.dtype)).reshape(shape)

    def all_to_all(
        self, x: Array, send_counts: Sequence[int] | None = None, recv_counts: Sequence[int] | None = None
    ) -> Array:
        """A piece from every rank to every rank.

        Without counts: x (size, ...), row r goes to rank r -> (size, ...), row s came from rank s.
        With counts: x (sum(send_counts),), pieces for rank 0, 1, ... in order -> (sum(recv_counts),), pieces from
        rank 0, 1, ... in order; recv_counts[s] is what rank s has in its send_counts for this rank. Counts may be 0.

        Sends the pieces for other ranks. Raises ValueError or TypeError for an x that does not fit.
        """
        self._check_array(x)
        if (send_counts is None) != (recv_counts is None):
            raise ValueError("all_to_all takes send_counts and recv_counts, or neither; got only one of them")
        if send_counts is None or recv_counts is None:
            if x.ndim == 0 or x.shape[0] != self.size:
                raise ValueError(f"x must have a row for each of {self.size} ranks, got shape {tuple(x.shape)}")
            send = recv = [x.size // self.size] * self.size
            shape = x.shape
        else:
            send = self._check_counts("send_counts", send_counts)
            recv = self._check_counts("recv_counts", recv_counts)
            if x.shape != (sum(send),):
                raise ValueError(f"x must have shape (sum(send_counts),) = ({sum(send)},), got {tuple(x.shape)}")
            if send[self.rank] != recv[self.rank]:
                raise ValueError(
                    f"rank {self.rank} would send itself send_counts[{self.rank}] = {send[self.rank]} elements "
                    f"but receive recv_counts[{self.rank}] = {recv[self.rank]}: they must be equal"
                )
            shape = (sum(recv),)
        send_bytes, recv_bytes = ([n * x.itemsize for n in counts] for counts in (send, recv))
        self.count_sent(send_bytes)
        with self.calling(f"all_to_all of {in_words(x) if send_counts is None else 'pieces by counts'}"):
            out = self._exchange(as_bytes(x), offsets(send_bytes), send_bytes, recv_bytes)
        return out.view(x.dtype).reshape(shape)

    def terms(self, x: Array, counts: Sequence[int]) -> Sequence[Array]:
        """What the ranks have for this one, in rank order: (counts[rank],) of each, as all_to_all with counts sends it.

        x  (sum(counts),), pieces for rank 0, 1, ... in order; counts are the same on all ranks

        The own term may be a view of x: they are for reading. Raises as all_to_all does.
        """
        mine = counts[self.rank]
        return self.all_to_all(x, counts, [mine] * self.size).reshape(self.size, mine)

    def all_gather_made(
        self, make: Callable[[Array], None], counts: Sequence[int], dtype: Any, xp: ModuleType
    ) -> Array:
        """all_gather with counts, of arrays of `xp` that make(piece) writes into: (counts[rank],) of dtype."""
        piece = xp.empty(counts[self.rank], dtype)
        make(piece)
        return self.all_gather(piece, counts)

    def all_reduce(self, x: Array) -> Array:
        """sum over ranks of x, in x's dtype: added in rank order, rounded once, equal on all ranks bit for bit.

        x  any shape, the same on all ranks, of any number of elements; float16, bfloat16 and float32 are added in
           float32, float64 in float64, integers in their own dtype (which wraps, as NumPy's do)

        Each rank adds an even share of the elements: it receives its share of every rank's x (all_to_all), adds,
        rounds, and everyone receives that (all_gather). Sends (n + (size - 2) * share) * itemsize bytes, where n
        is x.size and share is n / size, rounded up on the first n % size ranks and down on the others. Raises TypeError
        for a dtype that is none of these.
        """
        self._check_array(x)
        dtype = sum_dtype(x.dtype)
        shares = even_shares(x.size, self.size)
        with self.calling(f"all_reduce of {in_words(x)}"):
            terms = self.terms(x.reshape(-1), shares)
            make = round_sum if dtype == np.float32 else add
            total = self.all_gather_made(lambda piece: make(terms, piece), shares, x.dtype, array_module(x))
            return total.reshape(x.shape)

    def sum_by_kernel(self, x: Array, codec: Any, algo: str) -> Array | None:
        """The "oneshot" or "twoshot" sum of x by one kernel, where a backend has one for it; else None.

        codec  a Codec, or None for a payload that is not compressed
        """
        return None

    @abstractmethod
    def _exchange(self, x: Array, starts: list[int], send_counts: list[int], recv_counts: list[int]) -> Array:
        """Send x[starts[r] : starts[r] + send_counts[r]] to every rank r; return what arrives, in rank order.

        The only array operation that a backend must have. x and the result are 1-D uint8, contiguous.
        """

    def _all_gather(self, x: Array, counts: list[int]) -> Array:
        """Send x to every rank; a backend with a faster way overrides this. counts: bytes that each rank sends."""
        return self._exchange(x, [0] * self.size, [x.size] * self.size, counts)

    def _check_array(self, x: Array) -> None:
        module = array_module(x)
        if module is not self.xp and not self.takes_any_module:
            raise TypeError(
                f"backend {self.backend} moves {self.xp.__name__} arrays, got one of {module.__name__}; "
                f"move it with comm.xp.asarray (or cupy.asnumpy)"
            )
        if x.dtype.hasobject:
            raise TypeError(f"x must have a dtype of numbers, got {x.dtype}; send objects with bcast")

    def _check_counts(self, name: str, counts: Sequence[int]) -> list[int]:
        numbers = [index(n) for n in counts]
        if len(numbers) != self.size or min(numbers) < 0:
            raise ValueError(f"{name} must be {self.size} numbers >= 0, one for each rank, got {numbers}")
        return numbers


class _Call:
    """`with` this, a communicator is inside a call. A class, since a generator would take twice the time."""

    def __init__(self, comm: Communicator):
        self.comm = comm

    def __enter__(self) -> None:
        self.comm._inside_call = True

    def __exit__(self, *error: object) -> None:
        self.comm._inside_call = False


_PART_OF_A_CALL = nullcontext()


def in_words(x: Array) -> str:
    """An array's dtype and shape."""
    return _in_words(x.dtype, x.shape)


@lru_cache(4096)  # lengths of prompts are many
def _in_words(dtype: np.dtype, shape: tuple[int, ...]) -> str:
    return f"{dtype.name} {shape}"


def as_bytes(x: Array) -> Array:
    """x as a 1-D uint8 array: x itself or a view where x is contiguous, else a copy."""
    if x.dtype == np.uint8 and x.ndim == 1 and x.flags.c_contiguous:
        return x
    return array_module(x).ascontiguousarray(x).reshape(-1).view(np.uint8)


def sum_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype that all_reduce adds numbers of this dtype in. Raises TypeError for one that it does not add."""
    if dtype in (np.float16, bfloat16, np.float32):
        return np.dtype(np.float32)
    if dtype == np.float64 or dtype.kind in "iu":
        return dtype
    raise TypeError(
        f"all_reduce adds float16, bfloat16, float32, float64 and integers, got {dtype}; convert it with .astype"
    )


def check_color(color: int) -> None:
    """Raise ValueError for a color that `split` does not take."""
    if color < 0:
        raise ValueError(f"color must be an int >= 0, got {color}")


def check_root(root: int, size: int) -> None:
    """Raise ValueError for a root that is no rank."""
    if not 0 <= root < size:
        raise ValueError(f"root must be a rank from 0 to {size - 1}, got {root}")


def check_received(rank: int, source: int, sent: int, count: int) -> None:
    """Raise ValueError if `source` sent another number of bytes than `rank` counted on."""
    if sent != count:
        raise ValueError(
            f"rank {rank} counts on {count} bytes from rank {source}, which sends {sent}: "
            "shapes, dtypes and counts must agree between the ranks"
        )


def offsets(counts: Sequence[int]) -> list[int]:
    """Where the pieces of these sizes start, one after the other."""
    return list(accumulate(counts, initial=0))[:-1]


def split(x: Array, sizes: Sequence[int]) -> list[Array]:
    """Views of pieces of these sizes, one behind the other."""
    return [x[start : start + size] for start, size in zip(offsets(sizes), sizes, strict=True)]
