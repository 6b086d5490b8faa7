"""Ranks and the collectives between them: `init` for processes, `run_threads` for threads.

comm = init()                         # prints which backend it chose, and why
y    = comm.all_gather(x)             # (size, *x.shape)
y    = comm.all_to_all(x)             # x (size, ...): row r goes to rank r
y    = comm.all_reduce(x)             # sum over the ranks

backend    ranks are                     arrays
self       this process alone            NumPy or CuPy
threads    threads, see `run_threads`    NumPy or CuPy
mpi        processes                     NumPy
nccl       processes, a GPU each         CuPy
ipc        processes of one machine      CuPy, by reading each other's GPU memory
host       processes that share GPUs     CuPy, through host memory
"""

from __future__ import annotations

import os
import socket
from typing import Any

from ..ops.engine import threads
from . import discovery, nodes
from .alone import SelfCommunicator
from .communicator import Communicator
from .failures.abort import end_job_on_failure

BACKENDS = ("auto", "self", "threads", "mpi", "nccl", "ipc", "host")


def init(backend: str = "auto") -> Communicator:
    """The communicator of all ranks that were started together; rank 0 prints which backend it has and why.

    backend  "auto", for which the environment variable CUTPQ_COMM may name another, or
             "self", "mpi", "nccl", "ipc", "host"

    auto: self for one process; mpi where not every rank has a GPU; nccl where each rank has a GPU of its own; else
    host. The ranks decide together. ipc is for one machine, and taken only when asked for as long as it has not run on
    a GPU. A rank's GPU is its number on its node modulo the node's GPUs, and becomes CuPy's current device.

    Ranks of one machine share its cores for what NumPy computes (ops/engine/threads.py). Where there are more of them
    than cores, they run as Linux's batch processes (SCHED_BATCH): one that waits does not interrupt another.

    With more than one process, an uncaught error on one rank from now on ends the whole job, and so does a rank that
    calls other collectives than the rest (watch.py). MPICH's mpirun names a killed rank by
    its process: CUTPQ_VERBOSE=1 prints which rank is which process.

    Ranks of one machine share a node, unless rank 0's CUTPQ_NODES says otherwise (nodes.py).

    Raises ValueError for an unknown backend and for a CUTPQ_NODES that does not name a node for each rank,
    StartError, a RuntimeError, on all ranks where the one asked for cannot run, where they have different versions of
    cutpq, and where several processes were launched but MPI is missing or does not belong to the launcher.
    """
    asked = (os.environ.get("CUTPQ_COMM") or "auto") if backend == "auto" else backend
    if asked not in BACKENDS:
        origin = "CUTPQ_COMM" if backend == "auto" else "backend"
        raise ValueError(f"{origin}={asked!r} is not one of {', '.join(BACKENDS)}")
    if asked == "threads":
        raise ValueError("ranks as threads are started by cutpq.run_threads(size, fn, *args), not by init")
    comm = _connect(asked)
    if comm.rank == 0:
        ranks = "1 rank" if comm.size == 1 else f"{comm.size} ranks"
        cores = f"; {threads.limit()} of {threads.cores()} cores a rank" if comm.backend == "mpi" else ""
        print(f"# cutpq: {ranks}, backend {comm.backend}: {comm.reason}{cores}", flush=True)
    return comm


def _connect(asked: str) -> Communicator:
    if asked == "self":
        return _alone("asked for")
    mpi = discovery.start_mpi(required=asked != "auto")
    if mpi is None:
        return _alone("one process, and no MPI installed")
    world = mpi.COMM_WORLD
    if asked == "auto" and world.Get_size() == 1:
        return _alone("one process")
    if world.Get_size() > 1:
        end_job_on_failure(mpi)
        discovery.check_versions(mpi)
        threads.share_cores(world.allgather(socket.gethostname()).count(socket.gethostname()))

    if os.environ.get("CUTPQ_VERBOSE", "0") != "0":
        _print_processes(world)
    machine, number = discovery.find_node(mpi)
    pretended = world.bcast(os.environ.get("CUTPQ_NODES"))
    node = nodes.parse(pretended, world.Get_size())[world.Get_rank()] if pretended else machine
    world = world.Dup()  # a communicator of our own: its messages never match those of other users of MPI
    from .mpi import HostCommunicator, MpiCommunicator

    if asked == "mpi":
        return _watched(MpiCommunicator(world, "asked for", node))
    mine = discovery.find_gpu(number)
    found = world.allgather(mine)
    chosen, reason = discovery.choose(found) if asked == "auto" else discovery.require(asked, found)
    if chosen == "mpi":
        return _watched(MpiCommunicator(world, reason, node))

    import cupy

    cupy.cuda.Device(mine.device).use()
    if chosen == "host":
        return _watched(HostCommunicator(world, reason, mine.device, node))

    if chosen == "ipc":
        from .ipc import IpcCommunicator
        from .slab import CudaMemory

        memory = CudaMemory(cupy, cupy.cuda.Device().id)
        return IpcCommunicator(MpiCommunicator(world, reason), memory, mine.bus, mine.device)

    from cupy.cuda import nccl

    from .nccl import NcclCommunicator

    return NcclCommunicator(MpiCommunicator(world, reason, node), nccl, cupy, mine.device)


def _print_processes(world: Any) -> None:
    """Print which process each rank is: launchers name processes, not ranks."""
    processes = world.gather(f"process {os.getpid()} on {socket.gethostname()}")
    for rank, process in enumerate(processes or ()):
        print(f"# cutpq: rank {rank} is {process}", flush=True)


def _watched(comm: Communicator) -> Communicator:
    """Start the watch of a communicator whose ranks wait on the host; nccl and ipc start their own."""
    comm.start_watch()
    return comm


def _alone(reason: str) -> SelfCommunicator:
    gpu = discovery.find_gpu(0)
    if gpu.device is None:
        return SelfCommunicator(reason)

    import cupy

    return SelfCommunicator(reason, cupy, cupy.cuda.Device().id)
