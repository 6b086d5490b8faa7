"""The all-reduce over a slow link that is real: ranks in network namespaces, joined by a switch with a rate limit.

    python bench/slow_link.py                              4 ranks, 100 Mbit/s, 1 Gbit/s and without a limit
    python bench/slow_link.py --rates 250mbit --ranks 3 -b 64K -e 4M --codecs mxfp4,int4-b8

Other flags are those of bench/all_reduce.py. Needs what harness/namespaces.py needs, and an MPICH built with UCX, as
the wheel is. No namespace remains, however the script ends.

Each rank has a network namespace of its own. A cable (veth) leads from it to a switch (a bridge), with a token bucket
(tc tbf) at both ends: a rank sends at no more than that rate, and receives at no more, as behind a network card.
MPIR_CVAR_NOLOCAL=1 and UCX_TLS=tcp,self keep MPI from shared memory. A row is one algo and codec at one size:

time(us)      as bench/all_reduce.py takes it
speedup       time of plain over this one's
wire_bytes    payload that the rank that sends most says it sends
cable_bytes   what the cable of the busiest rank carried in one call, by the interface's counter, headers included
predicted_us  by cutpq/cost with the latency and bandwidth that messages between two ranks had in this run, its
              ring and GPU kernels: what the link costs, but not what NumPy takes to encode and decode
check         as in bench/all_reduce.py, and FAIL if a cable carried less than its rank says it sent
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import all_reduce as bench
import numpy as np
from harness.flags import at_least
from harness.namespaces import BURST, COUNTER, MTU, WITHIN, connect, disconnect, mpirun, obstacle, within_namespaces
from harness.report import Column, Table, header, write_json
from truth.verifiable import term

import cutpq as cq
from cutpq.array import to_numpy
from cutpq.cost.all_reduce import compressed_all_reduce_us
from cutpq.cost.links import Link, Protocol, all_reduce_us
from cutpq.ranks.communicator import Communicator

DEFAULT = ["-b", "16K", "-e", "4M", "-f", "4", "-n", "5", "--codecs", "mxfp4,mxfp8-e4m3"]
OVER_TCP = {"MPIR_CVAR_NOLOCAL": "1", "UCX_TLS": "tcp,self", "UCX_NET_DEVICES": "eth0"}
ROWS = "CUTPQ_SLOW_LINK_ROWS"  # set where the script calls itself on each rank

TABLE = Table(
    (
        Column("rate", "rate", 8),
        Column("size", "size(B)", 9),
        Column("algo", "algo", 7),
        Column("codec", "codec", 19),
        Column("time_us", "time(us)", 10, ".0f"),
        Column("speedup", "speedup", 7, ".2f"),
        Column("wire_bytes", "wire_bytes", 10),
        Column("cable_bytes", "cable_bytes", 11),
        Column("rel_err", "rel_err", 8, ".1e"),
        Column("predicted_us", "predicted_us", 12, ".0f"),
        Column("check", "check", 5),
    )
)

Row = dict[str, Any]


def main(argv: Sequence[str]) -> int:
    """Call this script again in namespaces and on their ranks; 1 where a check fails, 2 where that is impossible."""
    args, flags = parse(argv)
    if ROWS in os.environ:
        return measure(bench.parse(flags), Path(os.environ[ROWS]))
    if WITHIN not in os.environ:
        reason = obstacle()
        if reason:
            print(f"slow_link.py: {reason}", file=sys.stderr)
            return 2
        return within_namespaces([sys.executable, __file__, *argv])
    rows: list[Row] = []
    for rate in args.rates:
        found = run(rate, args.ranks, flags)
        if not rows:
            print("\n".join(found["header"]))
            print("# command: python bench/slow_link.py", shlex.join(argv))
            print(f"# veth and bridge, MTU {MTU}, tbf of burst {BURST}; MPI over TCP: {OVER_TCP}")
            print(TABLE.heading())
        rows += [{"rate": rate} | row for row in found["rows"]]
        print(f"# {rate}: measured between two ranks {found['mbit_s']:.0f} Mbit/s, {found['latency_us']:.0f} us")
        print("\n".join(TABLE.line(row) for row in rows if row["rate"] == rate), flush=True)
    if args.json:
        write_json(args.json, rows)
    return 1 if any(row["check"] == "FAIL" for row in rows) else 0


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Own flags, and those for bench/all_reduce.py, which are checked, too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=at_least(2), default=4, metavar="N", help="(4)")
    parser.add_argument(
        "--rates",
        type=lambda text: text.split(","),
        default=["100mbit", "1gbit", "none"],
        metavar="R,R,...",
        help="as tc has them, or none (100mbit,1gbit,none)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write one object a row")
    args, flags = parser.parse_known_args(argv)
    flags = [*DEFAULT, *flags]
    bench.parse(flags)
    return args, flags


def run(rate: str, ranks: int, flags: list[str]) -> dict[str, Any]:
    """What the ranks measure over such cables: see `measure`."""
    names = [f"rank{rank}" for rank in range(ranks)]
    connect(names, rate)
    enter = ["sh", "-c", 'exec ip netns exec "rank$PMI_RANK" "$@"', "sh"]
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder, "rows.json")
        command = [mpirun() or "mpirun", "-n", str(ranks), *enter, sys.executable, __file__, *flags]
        done = subprocess.run(command, env=os.environ | OVER_TCP | {ROWS: str(rows)}, stdout=sys.stderr, check=False)
        if done.returncode:
            sys.exit(f"slow_link.py: the ranks ended with status {done.returncode}")
        disconnect(names)
        return json.loads(rows.read_text())


# --- what a rank does ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cable(Link):
    """A link with one way to use it, whose figures were measured."""

    latency_us: float = 0.0

    @property
    def protocols(self) -> tuple[Protocol, ...]:
        return (Protocol("TCP", 0.0, self.latency_us, self.bus_gb_s),)


def measure(args: argparse.Namespace, path: Path) -> int:
    """Measure the link and all rows on this rank; rank 0 writes them."""
    comm = cq.init("mpi")
    latency_us, gb_s = messages(comm)
    cable = Cable("measured", "tcp", gb_s, "h200", gb_s, latency_us)
    rows, plain_us = [], None
    for row, (count, case) in zip(bench.measure(args, comm), every_case(args), strict=True):
        plain_us = plain_us if case.codec else row["time_us"]
        sent_enough, row["cable_bytes"] = carried(count, case, args, comm)
        if not sent_enough:
            row["check"] = "FAIL"
        row["speedup"] = plain_us and round(plain_us / row["time_us"], 4)
        row["predicted_us"] = round(predict(row, case, cable), 2)
        rows.append(row)
    if comm.rank == 0:
        found = {"header": header(comm), "latency_us": latency_us, "mbit_s": gb_s * 8e3, "rows": rows}
        path.write_text(json.dumps(found))
    return 0


def every_case(args: argparse.Namespace) -> list[tuple[int, bench.Case]]:
    """Count and case of each row, in the order of bench.measure."""
    return [(count, case) for count in bench.counts(args) for case in bench.cases(args)]


def messages(comm: Communicator) -> tuple[float, float]:
    """Latency in us and bandwidth in GB/s of messages from rank 0 to 1 and back, while the others sleep."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD

    def one_way_us(nbytes: int, times: int) -> float:
        message, took = np.zeros(nbytes, np.uint8), []
        for _ in range(times):
            start = time.perf_counter()
            if comm.rank == 0:
                world.Send(message, 1)
            world.Recv(message, 1 - comm.rank)
            if comm.rank == 1:
                world.Send(message, 0)
            took.append((time.perf_counter() - start) * 5e5)
        return statistics.median(took)

    found = None
    if comm.rank < 2:
        short, long = one_way_us(1, 51), one_way_us(1 << 20, 5)
        found = short, (1 << 20) / (long - short) / 1e3
    arrived = world.Ibarrier()
    while not arrived.Test():
        time.sleep(0.01)
    return comm.bcast(found)


def carried(count: int, case: bench.Case, args: argparse.Namespace, comm: Communicator) -> tuple[bool, int]:
    """Whether every rank's cable carried at least what the rank says it sent in one call, and the most of them."""
    x = term(bench.SEED, comm.rank, 0, count, np.dtype(bench.DTYPES[args.datatype]))
    comm.barrier()
    before = int(COUNTER.read_text())
    comm.reset_sent()
    bench.reduce(x, comm, case)
    sent = comm.sent_bytes
    comm.barrier()
    by_cable = int(COUNTER.read_text()) - before
    every = to_numpy(comm.all_gather(np.array([sent, by_cable])))
    return bool((every[:, 0] <= every[:, 1]).all()), int(every[:, 1].max())


def predict(row: Row, case: bench.Case, cable: Cable) -> float:
    """The cost model's time for a row on such a cable."""
    itemsize = row["size"] // row["count"]
    if case.codec is None:
        return all_reduce_us(row["size"], row["ranks"], cable)
    return compressed_all_reduce_us(case.algo, row["count"], itemsize, row["ranks"], case.codec, cable)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
