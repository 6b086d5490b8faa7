"""The all-reduce, plain and compressed, in the manner of nccl-tests: flags, columns and formulas.

    mpirun -n 8 python bench/all_reduce.py                               sizes from 1K to 4M
    mpirun -n 4 python bench/all_reduce.py -b 64K -e 16M -f 4 --codecs mxfp4,int4-b8 --algos plain,twoshot

A row is one algo and codec at one size; out of place. Its columns, beside those that nccl-tests has:
time        us: median over the iterations of the slowest rank's time
algbw       size over time: of the uncompressed bytes, whatever travels
busbw       algbw * 2 (n-1) / n
#wrong      elements that differ between ranks, or miss the float64 sum by more than the codec's stated bound
wire_bytes  counted payload of the rank that sends most
ratio       what a plain all-reduce sends, over that
rel_err     |y - sum| / |sum|, 2-norms
check       ok, or FAIL where #wrong is not 0 or rel_err differs by more than 2 % from what the codec's rounding of
            this data makes it, computed by the formats' definitions in float64; then the exit status is 1

Columns headed proj(us) are not measured: they are the cost model's times for the same sum over the link that they
name. --project chooses the links; --project none leaves the columns out.

The data is a function of (seed, rank, index), see bench/truth/verifiable.py. Below the table of one rank on a GPU: what
each codec kernel reaches of a copy's bandwidth.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import codec_kernels
import numpy as np
from harness import blas  # noqa: F401  before NumPy
from harness.flags import at_least, codecs, figure_file, names, nbytes
from harness.report import Column, Table, header, progress, pyplot, time_us, write_json
from truth.verifiable import rounded_sum, slices, sum_and_bound, term, verify

import cutpq as cq
from cutpq.array import Array, bfloat16, ceil_div, to_numpy
from cutpq.codecs.codec import Codec
from cutpq.cost.all_reduce import compressed_all_reduce_us
from cutpq.cost.links import LINKS, all_reduce_us
from cutpq.ranks.communicator import Communicator

ALGOS = ("plain", "oneshot", "twoshot", "auto")
CODECS = "mxfp8-e4m3,mxfp4"
DTYPES = {"float16": np.float16, "bfloat16": bfloat16, "float32": np.float32}
PROJECTED_LINKS = ("a100-nvlink", "h100-nvlink", "l4-pcie")
PROJECTED_RANKS = 8  # ranks of the projection where the run itself has only one
SEED = 1

COLUMNS = (
    Column("size", "size\n(B)", 10),
    Column("count", "count\n(elements)", 10),
    Column("type", "type\n", 8),
    Column("redop", "redop\n", 5),
    Column("root", "root\n", 4),
    Column("algo", "algo\n", 7),
    Column("codec", "codec\n", 10),
    Column("time_us", "time\n(us)", 9, ".1f"),
    Column("host_us", "host\n(us)", 7, ".1f"),
    Column("algbw", "algbw\n(GB/s)", 8, ".3f"),
    Column("busbw", "busbw\n(GB/s)", 8, ".3f"),
    Column("wrong", "#wrong\n", 6),
    Column("wire_bytes", "wire_bytes\n(B)", 10),
    Column("ratio", "ratio\n", 5, ".2f"),
    Column("rel_err", "rel_err\n", 7, ".1e"),
)
CHECK = Column("check", "check\n", 5)

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, write what was asked for; 1 where a check fails, 2 for input that cannot be used."""
    args = parse(argv)
    comm = cq.init()
    rows = measure(args, comm)
    kernels = []
    if comm.xp is not np and comm.size == 1:
        small: Row = {"sizes": codec_kernels.SMOKE_SIZES, "spread": 0} if args.smoke else {}
        kernels = codec_kernels.rows(args.codecs, comm.xp, **small)
    if comm.rank == 0:
        projected = list(project(args, comm.size))
        print("\n".join([*header(comm), *table(rows, projected, args), *codec_kernels.lines(kernels)]))
        if args.json:
            write_json(args.json, [*rows, *projected, *kernels])
        if args.plot:
            plot(args.plot, rows)
    return 1 if any(row["check"] == "FAIL" for row in [*rows, *kernels]) else 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Flags, checked for what needs no ranks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("-b", "--minbytes", type=nbytes, metavar="B", help="smallest size, with K, M or G (1K)")
    add("-e", "--maxbytes", type=nbytes, metavar="B", help="largest size (4M)")
    add("-f", "--stepfactor", type=at_least(2), default=8, metavar="F", help="between sizes (8)")
    add("-n", "--iters", type=at_least(1), metavar="N", help="exactly so many (20, fewer where they take long)")
    add("-w", "-x", "--warmup_iters", type=at_least(0), default=1, metavar="N", help="not timed (1)")
    add("-c", "--check", type=int, choices=(0, 1), default=1, help="compare with the float64 sum (1)")
    add("-d", "--datatype", choices=DTYPES, default="float16", help="(float16)")
    add(
        "--codecs", type=codecs, default=CODECS, metavar="C,C,...", help=f"names as in cutpq/codecs/names.py ({CODECS})"
    )
    add("--algos", type=names(ALGOS), default="plain,oneshot,twoshot", metavar="A,A,...", help=f"of {ALGOS}")
    add("--project", type=names([*LINKS, "none"]), default=PROJECTED_LINKS, metavar="LINK,...", help="columns, or none")
    add("--json", type=Path, metavar="FILE", help="write one object a row")
    add("--plot", type=figure_file, metavar="FILE", help="time against size, and error against bits per value")
    add("--smoke", action="store_true", help="few sizes and repetitions: does everything work?")
    args = parser.parse_args(argv)
    smallest, largest = (1 << 10, 1 << 16) if args.smoke else (1 << 10, 1 << 22)
    if args.minbytes is None:
        args.minbytes = smallest if args.maxbytes is None else min(smallest, args.maxbytes)
    if args.maxbytes is None:
        args.maxbytes = max(largest, args.minbytes)
    if args.maxbytes < args.minbytes:
        parser.error(f"-e {args.maxbytes} is less than -b {args.minbytes}")
    if args.minbytes < np.dtype(DTYPES[args.datatype]).itemsize:
        parser.error(f"-b {args.minbytes} is less than one {args.datatype}")
    return args


# --- measuring -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One way to sum; plain needs no codec."""

    algo: str
    codec: Codec | None


def cases(args: argparse.Namespace) -> list[Case]:
    """Plain once, then each codec by each other algo."""
    plain = [Case("plain", None)] if "plain" in args.algos else []
    return plain + [Case(algo, c) for c in args.codecs for algo in args.algos if algo != "plain"]


def counts(args: argparse.Namespace) -> list[int]:
    """Elements of each size."""
    size, found = args.minbytes, []
    while size <= args.maxbytes:
        found.append(size // np.dtype(DTYPES[args.datatype]).itemsize)
        size *= args.stepfactor
    return found


def measure(args: argparse.Namespace, comm: Communicator) -> list[Row]:
    """All rows, the same on every rank."""
    dtype, every = np.dtype(DTYPES[args.datatype]), cases(args)
    rows = []
    with progress(len(counts(args)) * len(every), "all_reduce", comm) as bar:
        for count in counts(args):
            x = comm.xp.asarray(term(SEED, comm.rank, 0, count, dtype))
            mine = slices(count, comm.size)[comm.rank]
            terms = [term(SEED, rank, *mine, dtype) for rank in range(comm.size)] if args.check else []
            for case in every:
                rows.append(run(case, x, terms, args, comm))
                bar.update()
    return rows


def reduce(x: Array, comm: Communicator, case: Case) -> Array:
    """What is measured."""
    return cq.all_reduce(x, comm, case.codec, case.algo)


def run(case: Case, x: Array, terms: list[np.ndarray], args: argparse.Namespace, comm: Communicator) -> Row:
    """One row: call once for the result and the bytes, then for the time. No terms: nothing is checked."""
    comm.reset_sent()
    y = reduce(x, comm, case)
    wire_bytes = int(to_numpy(comm.all_gather(comm.xp.asarray([comm.sent_bytes]))).max())
    verdict = None
    if terms:
        exact, bound = sum_and_bound(terms, case.codec, case.algo, each_step=comm.backend == "nccl")
        verdict = verify(y, exact, bound, rounded_sum(terms, case.codec, case.algo), comm)
    for _ in range(args.warmup_iters):
        reduce(x, comm, case)
    iterations, budget_s = (args.iters, 1e6) if args.iters else (3, 0.05) if args.smoke else (20, 0.3)
    took = time_us(lambda: reduce(x, comm, case), comm, iterations, budget_s)
    algbw = x.nbytes / took.time_us / 1e3
    plain = plain_sent(x.size, comm.size) * x.itemsize
    return {
        "size": x.nbytes,
        "count": x.size,
        "type": args.datatype,
        "redop": "sum",
        "root": -1,
        "algo": case.algo,
        "codec": case.codec and case.codec.name,
        "bits": case.codec.bits if case.codec else 8 * x.itemsize,
        "time_us": round(took.time_us, 2),
        "host_us": took.host_us and round(took.host_us, 2),
        "algbw": round(algbw, 6),
        "busbw": round(algbw * 2 * (comm.size - 1) / comm.size, 6),
        "wrong": verdict and verdict.wrong,
        "wire_bytes": wire_bytes,
        "ratio": round(plain / wire_bytes, 4) if wire_bytes else None,
        "rel_err": verdict and verdict.rel_err,
        "expected_err": verdict and verdict.expected_err,
        "check": verdict and verdict.check,
        "ranks": comm.size,
        "backend": comm.backend,
        "projected": False,
    }


def plain_sent(count: int, ranks: int) -> int:
    """Elements that the busiest rank sends in a plain all-reduce: see Communicator.all_reduce."""
    return count + (ranks - 2) * ceil_div(count, ranks) if ranks > 1 else 0


# --- projecting ----------------------------------------------------------------------------------------------------


def project(args: argparse.Namespace, ranks: int) -> Iterator[Row]:
    """What cutpq/cost/all_reduce.py says of the same rows on other machines; `auto` is one of the others."""
    n = ranks if ranks > 1 else PROJECTED_RANKS
    itemsize = np.dtype(DTYPES[args.datatype]).itemsize
    for count in counts(args):
        for case in cases(args):
            for name in args.project:
                if case.algo == "auto" or name == "none":
                    continue
                plain = time = all_reduce_us(count * itemsize, n, LINKS[name])
                if case.codec is not None:
                    time = compressed_all_reduce_us(case.algo, count, itemsize, n, case.codec, LINKS[name])
                yield {
                    "size": count * itemsize,
                    "type": args.datatype,
                    "algo": case.algo,
                    "codec": case.codec and case.codec.name,
                    "link": name,
                    "ranks": n,
                    "time_us": round(time, 2),
                    "speedup": round(plain / time, 4),
                    "projected": True,
                }


def beside(rows: list[Row], projected: list[Row]) -> list[Row]:
    """The measured rows, each with its projected times under the links' names."""
    times: dict[tuple[Any, ...], Row] = {}
    for row in projected:
        times.setdefault((row["size"], row["algo"], row["codec"]), {})[row["link"]] = row["time_us"]
    return [row | times.get((row["size"], row["algo"], row["codec"]), {}) for row in rows]


def source(projected: list[Row]) -> list[str]:
    """Where the projected columns come from."""
    if not projected:
        return []
    return [
        f"# proj(us): PROJECTED, not measured, for {projected[0]['ranks']} GPUs on that link, by cutpq/cost",
        "#           from NCCL 2.30.7's latency and bandwidth constants and the GPUs' data sheets",
    ]


# --- showing -------------------------------------------------------------------------------------------------------


def table(rows: list[Row], projected: list[Row], args: argparse.Namespace) -> list[str]:
    """The measured table with its projected columns, and what nccl-tests says below its own."""
    links = dict.fromkeys(row["link"] for row in projected)
    added = [Column(link, f"{link}\nproj(us)", max(len(link), 8), ".1f") for link in links]
    longest = max((len(c.name) for c in args.codecs), default=0)
    on_gpu = any(row.get("host_us") is not None for row in rows)  # elsewhere host time is all of the time
    kept = [c for c in COLUMNS if c.key != "host_us" or on_gpu]
    columns = [replace(c, width=max(c.width, longest)) if c.key == "codec" else c for c in kept]
    shown = Table((*columns, *added, CHECK))
    lines = [
        f"# minbytes {args.minbytes} maxbytes {args.maxbytes} step: {args.stepfactor}(factor) warmup iters: "
        f"{args.warmup_iters} iters: {args.iters or 'at most 20'} validation: {args.check}",
        *source(projected),
        shown.heading(),
        *map(shown.line, beside(rows, projected)),
    ]
    if args.check:
        wrong = sum(row["wrong"] for row in rows)
        lines.append(f"# Out of bounds values : {wrong} {'FAILED' if wrong else 'OK'}")
        lines += [
            f"# {row['size']} bytes, {row['algo']} {row['codec'] or ''}: rel_err {row['rel_err']:.2e}, where "
            f"rounding makes it {row['expected_err']:.2e} FAILED"
            for row in rows
            if row["check"] == "FAIL" and not row["wrong"]
        ]
    plain = [row["busbw"] for row in rows if row["algo"] == "plain"]
    if plain:
        lines.append(f"# Avg bus bandwidth    : {np.mean(plain):.6g} (plain)")
    return lines


def plot(path: Path, rows: list[Row]) -> None:
    """Time against size for each algo and codec; error against bits per value at the greatest size."""
    figure, (times, errors) = pyplot().subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    kinds = list(dict.fromkeys((row["algo"], row["codec"]) for row in rows))
    for algo, name in kinds:
        of_kind = [row for row in rows if (row["algo"], row["codec"]) == (algo, name)]
        label = f"{algo} {name or ''}"
        times.plot([r["size"] for r in of_kind], [r["time_us"] for r in of_kind], marker="o", label=label)
        if of_kind[-1]["rel_err"]:
            errors.plot(of_kind[-1]["bits"], of_kind[-1]["rel_err"], marker="o", linestyle="", label=label)
    times.set(xscale="log", yscale="log", xlabel="size (bytes, uncompressed)", ylabel="time_us")
    times.set_title(f"measured: {rows[0]['ranks']} ranks, {rows[0]['backend']}, {rows[0]['type']}", fontsize="medium")
    errors.set(yscale="log", xlabel="bits per value on the wire", ylabel="rel_err")
    errors.set_title(f"error of normal data, {rows[-1]['size']} bytes", fontsize="medium")
    times.legend(fontsize="small")
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(main())
