"""What all benches share: `#` header lines, tables of fixed columns, JSON lines, and how a time is taken."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from cutpq.array import to_numpy
from cutpq.ranks.communicator import Communicator
from harness.gpu_clock import REPLAYS, spin


def header(comm: Communicator) -> list[str]:
    """What must be known of a run to make sense of its times, a line each."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    lines = [
        f"# cutpq {_package('cutpq')}, commit {_commit()}, {datetime.date.today().isoformat()}",
        f"# machine: {_cpu()}, {cores} cores; GPU: {_gpu(comm)}",
        f"# Python {platform.python_version()}, NumPy {np.__version__}, MPI: {_mpi()}",
        f"# ranks: {comm.size}, backend: {comm.backend} ({comm.reason})",
    ]
    if comm.xp is np:
        lines.append("# no GPU: times are of NumPy; results and bytes are those of any run")
    if comm.xp is not np and comm.size > 1 and comm.waits_on_host:
        lines.append("# ranks share a GPU or meet on the host: times are not meaningful")
    return lines


@dataclass(frozen=True)
class Column:
    """A table's column: `key` in the row, heading with its unit, width, and format of a value.

    title  one line, or two in a table where all have two
    """

    key: str
    title: str
    width: int
    form: str = ""


@dataclass(frozen=True)
class Table:
    """Columns of fixed width, numbers to the right. A missing value prints as "-"."""

    columns: tuple[Column, ...]

    def heading(self) -> str:
        """The line of column names, or the two, behind a `#`."""
        titles = [c.title.split("\n") for c in self.columns]
        lines = [" ".join(map(str.rjust, parts, self._widths())) for parts in zip(*titles, strict=True)]
        return "\n".join("#" + line.removeprefix(" ").rstrip() for line in lines)

    def line(self, row: dict[str, Any]) -> str:
        """One row."""
        return " ".join(self._cell(c, row.get(c.key)) for c in self.columns)

    def _widths(self) -> list[int]:
        return [c.width for c in self.columns]

    @staticmethod
    def _cell(column: Column, value: Any) -> str:
        return ("-" if value is None else format(value, column.form)).rjust(column.width)


def write_json(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line. The file appears when it is whole."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
    temporary.replace(path)


def progress(total: int, what: str, comm: Communicator) -> tqdm:
    """A bar on rank 0's terminal, for what takes longer than two seconds; nothing elsewhere."""
    hidden = comm.rank != 0 or not sys.stderr.isatty()
    return tqdm(total=total, desc=what, delay=2, leave=False, disable=hidden)


def pyplot() -> Any:
    """matplotlib's pyplot, for files alone: it needs no display."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


@dataclass(frozen=True)
class Times:
    """What one call takes, of the slowest rank.

    time_us  of the GPU, from the end of what was queued before; wall time where Times.host_us is None
    host_us  of Python and the driver until all is queued; None with NumPy and where ranks meet on the host
    """

    time_us: float
    host_us: float | None


def time_us(run: Callable[[], Any], comm: Communicator, iterations: int, budget_s: float) -> Times:
    """Times of run(): at least one iteration, at most `iterations`, fewer where they would take longer than `budget_s`.

    With CuPy all iterations are queued behind a kernel that spins until the host is done, and ranks start together
    with a sum on the GPU: neither Python nor the skew of a barrier is in the time. Where run() itself waits for the
    GPU, its host time is part of it. With NumPy, and where ranks meet on the host, the time is wall time.
    """
    if comm.xp is np or (comm.waits_on_host and comm.size > 1):
        return Times(latency_us(run, comm, iterations, budget_s), None)
    once = latency_us(run, comm, 1, budget_s)
    count = max(1, min(iterations, int(budget_s * 1e6 / once)))
    spin_us = 10_000.0
    for _ in range(4):
        rounds = [_queued_us(run, comm, count, spin_us) for _ in range(REPLAYS)]
        late, gpu, host = (_slowest(list(column), comm) for column in zip(*rounds, strict=True))
        if not any(late):
            break
        spin_us *= 4
    return Times(statistics.median(gpu), statistics.median(host))


def latency_us(run: Callable[[], Any], comm: Communicator, iterations: int, budget_s: float) -> float:
    """Median over iterations of the slowest rank's wall time for run() and its GPU work, after one that does not count.

    Every iteration begins together; there are fewer where they would take longer than `budget_s`.
    """
    once = _slowest([_wall_us(run, comm)], comm)[0]
    count = max(1, min(iterations, int(budget_s * 1e6 / once)))
    return statistics.median(_slowest([_wall_us(run, comm) for _ in range(count)], comm))


def same_on_ranks(digest: bytes, comm: Communicator) -> list[bytes]:
    """Every rank's digest, in rank order."""
    mine = np.frombuffer(digest, np.uint8)
    return [bytes(row) for row in to_numpy(comm.all_gather(comm.xp.asarray(mine)))]


def _wall_us(run: Callable[[], Any], comm: Communicator) -> float:
    comm.barrier()
    start = time.perf_counter()
    run()
    if comm.xp is not np:
        comm.xp.cuda.get_current_stream().synchronize()
    return (time.perf_counter() - start) * 1e6


def _queued_us(run: Callable[[], Any], comm: Communicator, count: int, spin_us: float) -> tuple[bool, float, float]:
    """Whether the GPU began before the host had queued all calls, and one call's time on the GPU and on the host."""
    xp = comm.xp
    begin, end, together = xp.cuda.Event(), xp.cuda.Event(), xp.ones(8, xp.float16)
    comm.barrier()
    spin(xp, spin_us)
    if comm.size > 1:
        comm.all_reduce(together)
    begin.record()
    start = time.perf_counter()
    for _ in range(count):
        run()
    host_us = (time.perf_counter() - start) * 1e6 / count
    late = bool(begin.done)
    end.record()
    end.synchronize()
    return late, xp.cuda.get_elapsed_time(begin, end) * 1e3 / count, host_us


def _slowest(times: float | list[float], comm: Communicator) -> list[float]:
    every = to_numpy(comm.all_gather(comm.xp.asarray(np.atleast_1d(np.asarray(times, np.float64)))))
    return [float(t) for t in every.max(axis=0)]


def _package(name: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return "(not installed)"


def _commit() -> str:
    import subprocess

    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _gpu(comm: Communicator) -> str:
    if comm.xp is np:
        return "none"
    runtime = comm.xp.cuda.runtime
    name = runtime.getDeviceProperties(comm.device or 0)["name"].decode()
    return f"{name}, driver for CUDA {runtime.driverGetVersion()}, CuPy {comm.xp.__version__}"


def _mpi() -> str:
    if "mpi4py.MPI" not in sys.modules:
        return "none"
    first_line = sys.modules["mpi4py.MPI"].Get_library_version().splitlines()[0]
    return " ".join(first_line.split())
