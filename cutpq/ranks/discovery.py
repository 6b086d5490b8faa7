"""What the ranks find: a launcher, an MPI library, GPUs; and which backend follows from that."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType

# The number of processes that a launcher started, by the variable in which it tells them.
LAUNCHERS = {
    "OMPI_COMM_WORLD_SIZE": "Open MPI's mpirun",
    "PMI_SIZE": "the mpirun of MPICH, Intel MPI or a relative",
    "MV2_COMM_WORLD_SIZE": "MVAPICH2's mpirun",
    "SLURM_STEP_NUM_TASKS": "Slurm's srun",
}
INSTALL = "pip install 'cutpq[mpi]'"
ALONE = "CUTPQ_COMM=self lets each process compute alone"


class StartError(RuntimeError):
    """The processes that were started cannot be ranks together, as the message says; raised on all of them."""


def launched_ranks() -> tuple[int, str]:
    """(number of processes that a launcher says it started, who says so); (1, "") without a launcher."""
    for variable, launcher in LAUNCHERS.items():
        number = os.environ.get(variable, "")
        if number.isdigit() and int(number) > 1:
            return int(number), f"{launcher} ({variable}={number})"
    return 1, ""


def start_mpi(required: bool) -> ModuleType | None:
    """mpi4py.MPI, initialized; None where it cannot be had, nobody launched several ranks and it is not required.

    Raises StartError where several ranks were launched, but MPI is missing or is not the launcher's.
    """
    launched, launcher = launched_ranks()
    _give_way_when_crowded()
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py without an MPI library
        if launched > 1:
            raise StartError(
                f"{launcher} started {launched} ranks, but they cannot find each other: {error}. {INSTALL}; {ALONE}"
            ) from None
        if required:
            raise StartError(f"this backend needs MPI: {error}. {INSTALL}") from None
        return None
    if MPI.COMM_WORLD.Get_size() == 1 and launched > 1:
        name, version = MPI.get_vendor()
        mpirun = os.path.join(os.path.dirname(sys.executable), "mpirun")
        by_slurm = ", or srun --mpi=pmi2 (MPICH) or --mpi=pmix (Open MPI)" if "srun" in launcher else ""
        raise StartError(
            f"launched with {launched} ranks by {launcher}, but mpi4py is linked with another MPI, "
            f"{name} {'.'.join(map(str, version))}, which sees one rank. Start with that MPI's own mpirun "
            f"(here probably {mpirun}){by_slurm}, or install an mpi4py built for the launcher; {ALONE}"
        )
    return MPI


def _give_way_when_crowded() -> None:
    """Where there are more ranks than cores: let those that wait give up their core, and those that compute keep it.

    The first is MPICH's, which reads the variable when it starts. Measured with MPICH 5.0.2, 8 ranks on 2 cores: a
    small all_reduce falls from 5 ms to 0.9 ms. With a core for each rank it would be 30 times slower.

    The second is Linux's: as batch processes, ranks that wake up to look for messages do not interrupt one that
    computes, whose data are in the cache. On the same cores a hierarchical sum of 4 MiB over 1 Gbit/s takes 0.88 of
    the time.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if int(os.environ.get("MPI_LOCALNRANKS", "1")) > cores:
        os.environ.setdefault("MPIR_CVAR_ENABLE_HEAVY_YIELD", "1")
    crowded = os.environ.get("MPIR_CVAR_ENABLE_HEAVY_YIELD") == "1"
    if crowded and hasattr(os, "sched_setscheduler") and os.sched_getscheduler(0) == os.SCHED_OTHER:
        with suppress(OSError):  # a container may forbid it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def find_node(mpi: ModuleType) -> tuple[int, int]:
    """(number of this rank's machine, this rank's number among those on it); machines count in order of first ranks.

    Collective over COMM_WORLD.
    """
    node = mpi.COMM_WORLD.Split_type(mpi.COMM_TYPE_SHARED)
    first, rank = node.bcast(mpi.COMM_WORLD.Get_rank()), node.Get_rank()
    node.Free()
    firsts = sorted(set(mpi.COMM_WORLD.allgather(first)))
    return firsts.index(first), rank


def check_versions(mpi: ModuleType) -> None:
    """Raise StartError, on all ranks, where they run different versions of cutpq. Collective over COMM_WORLD."""
    found = mpi.COMM_WORLD.allgather((_version(), socket.gethostname()))
    if len({version for version, _ in found}) > 1:
        ranks_of: dict[tuple[str, str], list[int]] = {}
        for rank, place in enumerate(found):
            ranks_of.setdefault(place, []).append(rank)
        said = "; ".join(f"{version} on ranks {ranks} of {host}" for (version, host), ranks in ranks_of.items())
        raise StartError(f"ranks run different versions of cutpq: {said}. Install the same one everywhere")


def _version() -> str:
    import importlib.metadata

    try:
        return importlib.metadata.version("cutpq")
    except importlib.metadata.PackageNotFoundError:
        return "a version that is not installed"


@dataclass(frozen=True)
class Gpu:
    """What one rank found: its machine, its GPU, and whether NCCL is there; `problem` says why something is not.

    ipc  whether memory of this GPU can be exported to other processes
    """

    host: str
    device: int | None = None
    bus: str = ""
    nccl: bool = False
    ipc: bool = False
    problem: str = ""


def find_gpu(number: int) -> Gpu:
    """The GPU of the `number`th rank on this machine: `number` modulo the GPUs that CuPy can use."""
    host = socket.gethostname()
    try:
        import cupy

        device = number % cupy.cuda.runtime.getDeviceCount()
        bus = cupy.cuda.Device(device).pci_bus_id
        ipc = _exports_memory(cupy, device)
    except ModuleNotFoundError:
        return Gpu(host, problem="CuPy is not installed")
    except Exception as error:  # no driver, no device or the wrong CUDA: in each case no usable GPU
        return Gpu(host, problem=f"CuPy finds no GPU ({type(error).__name__}: {error})")
    try:
        from cupy.cuda import nccl

        nccl.get_version()
    except Exception as error:  # no library or the wrong one: in both cases no usable NCCL
        return Gpu(host, device, bus, ipc=ipc, problem=f"CuPy finds no NCCL ({type(error).__name__}: {error})")
    return Gpu(host, device, bus, nccl=True, ipc=ipc)


def _exports_memory(cupy: ModuleType, device: int) -> bool:
    """Whether CUDA gives a handle for memory of this GPU, with which another process could open it."""
    try:
        with cupy.cuda.Device(device):
            memory = cupy.cuda.memory.Memory(1 << 21)  # by a name: CUDA exports only memory that is still allocated
            cupy.cuda.runtime.ipcGetMemHandle(memory.ptr)
    except Exception:  # the container, the driver or the kind of memory forbids it
        return False
    return True


def choose(found: list[Gpu]) -> tuple[str, str]:
    """(backend, reason) for these ranks; a pure function of what all of them found, so that all decide alike."""
    with_gpu = sum(gpu.device is not None for gpu in found)
    if with_gpu == 0:
        return "mpi", "no rank has a GPU"
    if with_gpu < len(found):
        return "mpi", f"only {with_gpu} of {len(found)} ranks have a GPU"
    gpus = _distinct(found)
    if gpus < len(found):
        return "host", f"{len(found)} ranks share {gpus} GPU{'s' * (gpus > 1)}"
    without = [rank for rank, gpu in enumerate(found) if not gpu.nccl]
    if without:
        return "host", f"no NCCL on rank {without[0]}: {found[without[0]].problem}"
    return "nccl", "every rank has its own GPU"


def require(backend: str, found: list[Gpu]) -> tuple[str, str]:
    """(backend, reason) for "nccl", "ipc" or "host" when asked for; StartError on all ranks where it cannot run."""
    for rank, gpu in enumerate(found):
        if gpu.device is None or (backend == "nccl" and not gpu.nccl):
            raise StartError(f"backend {backend} cannot run: on rank {rank} ({gpu.host}), {gpu.problem}")
    if backend == "nccl" and _distinct(found) < len(found):
        raise StartError(
            f"backend nccl needs a GPU for each rank: {len(found)} ranks have {_distinct(found)}. "
            "Start fewer ranks, or use backend host"
        )
    if backend == "ipc":
        without = [rank for rank, gpu in enumerate(found) if not gpu.ipc]
        if _nodes(found) > 1 or without:
            why = f"rank {without[0]}'s GPU exports no memory" if without else f"they are on {_nodes(found)} machines"
            raise StartError(f"backend ipc needs all ranks on one machine, and CUDA IPC: {why}. Use backend host")
    return backend, "asked for"


def _nodes(found: list[Gpu]) -> int:
    return len({gpu.host for gpu in found})


def _distinct(found: list[Gpu]) -> int:
    return len({(gpu.host, gpu.bus) for gpu in found})
