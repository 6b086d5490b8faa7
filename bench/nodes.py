"""The all-reduce over several nodes: namespaces with ranks in each, shared memory inside and slow cables between.

    python bench/nodes.py                                  2 nodes x 4 ranks and 3 x 2; 100 Mbit/s, 1 and 10 Gbit/s
    python bench/nodes.py --nodes 2x2 --rates 250mbit --sizes 64K,4M --codecs mxfp4
    python bench/nodes.py --nodes 2x4 --rates 1gbit --run python bench/mlp.py --smoke    any command on such nodes
    python bench/nodes.py --nodes 3+5 --rates none --cut 1:5 --run python job.py         node 1 loses its cable at 5 s

Needs what harness/namespaces.py needs, and an MPICH built with UCX, as the wheel is. mpirun reaches the nodes by a
launcher command, as it does by ssh (harness/cluster.py). CUTPQ_BETWEEN, unless it is set, names the cable that is most
like the rate. A row is one algo and codec at one size, of float16; unless sizes are given 8 MiB, 512 tokens of 8192
features, as Llama-70B has them:

time(us)      of one sum: the slowest rank's, and of --n of these the median; the rows take turns
speedup       time of plain over this one's
cable_bytes   what the busiest node's cable carried away in one sum, by the interface's counter, headers included
formula       what cost/nodes.py says of the payload in it
predicted_us  the messages and bytes over the cable, with the latency and bandwidth that two ranks had in this run:
              what the cable costs, but not what NumPy takes to add, encode and decode
check         the same bits on all ranks, the sum that rounding by definition gives, no error outside of the bound,
              and no fewer bytes counted than the formula
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shlex
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness.blas  # noqa: F401  before NumPy: ranks share the cores
import numpy as np
from harness import cluster
from harness.flags import at_least, codecs
from harness.namespaces import COUNTER, WITHIN, obstacle, within_namespaces
from harness.report import Column, Table, header, write_json
from truth.verifiable import term

import cutpq as cq
from cutpq.cost.nodes import CABLES, Nodes, cable_sent, choose_shots, lane_shares
from cutpq.ranks import auto
from cutpq.ranks.communicator import Communicator

ROWS = "CUTPQ_NODES_ROWS"  # set where the script calls itself on each rank
SEED = 29

# How far a sum may be from the one that is rounded by definition, next to what that errs by: 2-norms. A float32 sum may
# differ in its last bit, and where it lies halfway between two codes it is rounded the other way.
MARGIN = 0.02

TABLE = Table(
    (
        Column("nodes", "nodes", 5),
        Column("rate", "rate", 8),
        Column("size", "size(B)", 9),
        Column("algo", "algo", 12),
        Column("codec", "codec", 12),
        Column("time_us", "time(us)", 10, ".0f"),
        Column("speedup", "speedup", 7, ".2f"),
        Column("cable_bytes", "cable_bytes", 11),
        Column("formula", "formula", 9),
        Column("predicted_us", "predicted_us", 12, ".0f"),
        Column("rel_err", "rel_err", 8, ".1e"),
        Column("check", "check", 5),
    )
)

Row = dict[str, Any]
Case = tuple[str, "cq.Codec | None"]


def main(argv: Sequence[str]) -> int:
    """Call this script again in namespaces and on their ranks; 1 where a check fails, 2 where that is impossible."""
    args = parse(argv)
    if ROWS in os.environ:
        return measure(args, Path(os.environ[ROWS]))
    if WITHIN not in os.environ:
        reason = obstacle()
        if reason:
            print(f"nodes.py: {reason}", file=sys.stderr)
            return 2
        return within_namespaces([sys.executable, __file__, *argv])
    if args.run:
        return run_command(args)
    rows: list[Row] = []
    for sizes in args.nodes:
        for rate in args.rates:
            found = run_rows(sizes, rate, argv)
            if not rows:
                print("\n".join(found["header"]))
                print("# command: python bench/nodes.py", shlex.join(argv))
                print(TABLE.heading())
            name = {"nodes": "+".join(map(str, sizes)), "rate": rate}
            here = [name | row for row in found["rows"]]
            rows += here
            link = f"{found['mbit_s']:.0f} Mbit/s, {found['latency_us']:.0f} us"
            print(f"# {name['nodes']}, {rate}: measured between two ranks of different nodes {link}")
            print("\n".join(TABLE.line(row) for row in here), flush=True)
    if args.json:
        write_json(args.json, rows)
    return 1 if any(row["check"] == "FAIL" for row in rows) else 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags; exits with the value and the rule where one is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=layouts, default=[[4, 4], [2, 2, 2]], metavar="L,L,...", help="(2x4,3x2)")
    rates = ["100mbit", "1gbit", "10gbit"]
    parser.add_argument(
        "--rates", type=lambda text: text.split(","), default=rates, metavar="R,R,...", help=f"({','.join(rates)})"
    )
    parser.add_argument("--sizes", type=sizes_in_bytes, default=[8 << 20], metavar="B,B,...", help="in bytes (8M)")
    parser.add_argument("--codecs", type=codecs, default=codecs("mxfp4,mxfp8-e4m3"), metavar="C,C,...")
    parser.add_argument("--n", type=at_least(1), default=5, metavar="N", help="sums that are timed (5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write one object a row")
    parser.add_argument(
        "--cut", type=cut_at, metavar="NODE:S", help="with --run: pull the node's cable after S seconds"
    )
    parser.add_argument("--run", nargs=argparse.REMAINDER, metavar="COMMAND", help="run this on the first of the nodes")
    return parser.parse_args(argv)


def layouts(text: str) -> list[list[int]]:
    """ "2x4,3+5" -> [[4, 4], [3, 5]]: ranks of each node."""
    found = []
    for part in text.split(","):
        count, times, each = part.partition("x")
        words = [each] * int(count) if times and count.isdecimal() else part.split("+")
        if len(words) < 2 or not all(word.isdecimal() and int(word) > 0 for word in words):
            raise argparse.ArgumentTypeError(f"{part!r} is not at least two nodes with ranks, such as 2x4 or 3+5")
        found.append(list(map(int, words)))
    return found


def sizes_in_bytes(text: str) -> list[int]:
    """ "64K,4M" -> [65536, 4194304]."""
    units = {"K": 10, "M": 20}
    found = []
    for part in text.split(","):
        number, shift = (part[:-1], units[part[-1]]) if part[-1:] in units else (part, 0)
        if not number.isdecimal() or not int(number) << shift >= 2:
            raise argparse.ArgumentTypeError(f"{part!r} is not a number of bytes, such as 64K")
        found.append(int(number) << shift)
    return found


def cut_at(text: str) -> tuple[int, float]:
    """ "1:2.5" -> (1, 2.5): a node and seconds."""
    node, _, seconds = text.partition(":")
    try:
        return int(node), float(seconds)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a node and seconds, such as 1:2.5") from None


def run_command(args: argparse.Namespace) -> int:
    """Run the command of --run on the first layout and rate, and pull a cable where --cut says so."""
    with tempfile.TemporaryDirectory() as folder, cluster.cluster(args.nodes[0], args.rates[0], Path(folder)) as start:
        job = cluster.run(start, args.run)
        if args.cut:
            threading.Timer(args.cut[1], cluster.cut, [args.cut[0]]).start()
        return job.wait()


def run_rows(sizes: list[int], rate: str, argv: Sequence[str]) -> dict[str, Any]:
    """What the ranks measure over such nodes: see `measure`."""
    with tempfile.TemporaryDirectory() as folder, cluster.cluster(sizes, rate, Path(folder)) as start:
        rows = Path(folder, "rows.json")
        told = {ROWS: str(rows), "CUTPQ_BETWEEN": os.environ.get("CUTPQ_BETWEEN") or cable_like(rate)}
        status = cluster.run(start, [sys.executable, __file__, *argv], **told).wait()
        if status:
            sys.exit(f"nodes.py: the ranks ended with status {status}")
        return json.loads(rows.read_text())


def cable_like(rate: str) -> str:
    """The name of the cable in cost/nodes.py that is nearest to a rate of tc's, such as 100mbit; "" for "none"."""
    number, unit = rate.rstrip("bitkmg"), rate.lstrip("0123456789.")
    units = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
    if unit not in units:
        return ""
    gb_s = float(number) * units[unit] / 8e9
    return min(CABLES, key=lambda name: abs(math.log(CABLES[name].node_gb_s / gb_s)))


# --- what a rank does ----------------------------------------------------------------------------------------------


def measure(args: argparse.Namespace, path: Path) -> int:
    """Measure the cable and all rows on this rank; rank 0 writes them."""
    comm = cq.init("mpi")
    nodes = Nodes.of(comm.node_of)
    latency_us, gb_s = messages(comm, nodes.ranks[1][0])
    cases: list[Case] = [("plain", None), ("hierarchical", None)]
    cases += [(algo, codec) for codec in args.codecs for algo in ("twoshot", "hierarchical")]
    rows: list[Row] = []
    for nbytes in args.sizes:
        x = term(SEED, comm.rank, 0, nbytes // 2, np.dtype(np.float16))
        of_size = [check_case(x, algo, codec, comm, nodes) for algo, codec in cases]
        times = [[one_us(x, algo, codec, comm) for algo, codec in cases] for _ in range(args.n)]
        for row, time_us in zip(of_size, np.median(times, axis=0).tolist(), strict=True):
            row["time_us"] = time_us
            row["speedup"] = of_size[0]["time_us"] / time_us
            row["predicted_us"] = row.pop("messages") * latency_us + row["formula"] / (gb_s * 1e3)
        rows += of_size
    if comm.rank == 0:
        path.write_text(
            json.dumps({"header": header(comm), "latency_us": latency_us, "mbit_s": gb_s * 8e3, "rows": rows})
        )
    return 0


def one_us(x: np.ndarray, algo: str, codec: cq.Codec | None, comm: Communicator) -> float:
    """Time of one sum on the slowest rank. Collective."""
    comm.barrier()
    start = time.perf_counter()
    cq.all_reduce(x, comm, codec, algo)
    return float(comm.all_gather(np.array((time.perf_counter() - start) * 1e6)).max())


def check_case(x: np.ndarray, algo: str, codec: cq.Codec | None, comm: Communicator, nodes: Nodes) -> Row:
    """A row but for its times. Collective."""
    count = x.size
    shots = choose_shots(count, nodes, codec, auto.cable(comm)) if codec and algo == "hierarchical" else ""
    rel_err, right = judge(cq.all_reduce(x, comm, codec, algo), algo, codec, shots, comm, nodes)
    carried = carried_bytes(x, algo, codec, comm)
    sent = [cable_sent(algo, count, 2, nodes, rank, codec, shots) for rank in range(comm.size)]
    formula = max(sum(sent[rank] for rank in ranks) for ranks in nodes.ranks)
    away = comm.size - min(map(len, nodes.ranks))
    exchanges = 1 if shots == "oneshot" else 2
    return {
        "size": 2 * count,
        "algo": algo,
        "codec": codec.name if codec else "-",
        "messages": exchanges * (nodes.count - 1 if algo == "hierarchical" else away),
        "cable_bytes": carried,
        "formula": formula,
        "rel_err": rel_err,
        "check": "ok" if right and carried >= formula else "FAIL",
    }


def judge(
    y: np.ndarray, algo: str, codec: cq.Codec | None, shots: str, comm: Communicator, nodes: Nodes
) -> tuple[float, bool]:
    """The norm of the sum's error over that of the sum, and whether it is right: see `check` above. Collective."""
    digest = np.frombuffer(hashlib.sha256(y.tobytes()).digest(), np.uint8)
    same = bool((comm.all_gather(digest) == digest).all())
    return comm.bcast(error_of(y, algo, codec, shots, nodes) if comm.rank == 0 else None) if same else (math.nan, False)


def error_of(y: np.ndarray, algo: str, codec: cq.Codec | None, shots: str, nodes: Nodes) -> tuple[float, bool]:
    """As `judge`, on one rank. A codec's bound alone would let a sum of many ranks lack one of them."""
    by_node = [[term(SEED, r, 0, y.size, np.dtype(np.float16)).astype(np.float64) for r in rs] for rs in nodes.ranks]
    terms = [part for parts in by_node for part in parts]
    exact, magnitude = np.sum(terms, axis=0), np.sum(np.abs(terms), axis=0)
    limit = 2.0**-11 * (nodes.count + 1) * magnitude + 2.0**-20 * magnitude
    error = y.astype(np.float64) - exact
    rel_err = float(np.linalg.norm(error) / np.linalg.norm(exact))
    if codec is None:
        return rel_err, bool((np.abs(error) <= limit).all())
    sums = [np.sum(parts, axis=0) for parts in by_node] if algo == "hierarchical" else terms
    sent = np.array(sums, np.float32)
    said = np.array([codec.decode(codec.encode(one)) for one in sent])
    bounds = np.array([codec.bound(one) for one in sent])
    if shots == "twoshot":  # the owner's term is not encoded
        own = owner_of_each(y.size, nodes, codec), np.arange(y.size)
        said[own], bounds[own] = sent[own], 0
    right = said.sum(axis=0)
    limit += bounds.sum(axis=0)
    if algo == "twoshot" or shots == "twoshot":
        limit += codec.bound(right)
        right = codec.decode(codec.encode(right))
    right = right.astype(y.dtype).astype(np.float64)
    as_defined = np.linalg.norm(y - right) <= MARGIN * np.linalg.norm(right - exact)
    return rel_err, bool((np.abs(error) <= limit).all() and as_defined)


def owner_of_each(n: int, nodes: Nodes, codec: cq.Codec) -> np.ndarray:
    """The node that adds each element of a hierarchical sum in two shots: of every lane a part in turn."""
    parts = [part for lane in lane_shares(codec.padded(n), nodes, codec, "twoshot") for part in lane]
    return np.repeat(np.arange(len(parts)) % nodes.count, parts)[:n]


def carried_bytes(x: np.ndarray, algo: str, codec: cq.Codec | None, comm: Communicator) -> int:
    """What the busiest node's interface sent during one sum, barriers included."""
    comm.barrier()
    before = int(COUNTER.read_text())
    comm.barrier()
    cq.all_reduce(x, comm, codec, algo)
    comm.barrier()
    return int(comm.all_gather(np.array(int(COUNTER.read_text()) - before)).max())


def messages(comm: Communicator, peer: int) -> tuple[float, float]:
    """Latency in us and bandwidth in GB/s of messages from rank 0 to `peer` and back, while the others sleep."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD

    def one_way_us(nbytes: int, times: int) -> float:
        message, took = np.zeros(nbytes, np.uint8), []
        for _ in range(times):
            start = time.perf_counter()
            if comm.rank == 0:
                world.Send(message, peer)
            world.Recv(message, peer if comm.rank == 0 else 0)
            if comm.rank == peer:
                world.Send(message, 0)
            took.append((time.perf_counter() - start) * 5e5)
        return statistics.median(took)

    found = None
    if comm.rank in (0, peer):
        short, long = one_way_us(1, 51), one_way_us(1 << 20, 5)
        found = short, (1 << 20) / (long - short) / 1e3
    arrived = world.Ibarrier()
    while not arrived.Test():
        time.sleep(0.01)
    return comm.bcast(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
