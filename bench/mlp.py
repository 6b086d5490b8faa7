"""The main job: an act-ordered MLP over tensor-parallel ranks in five schemes, each checked, timed and counted.

    mpirun -n 8 python bench/mlp.py                      the checkpoint that the repository carries, all its layers
    mpirun -n 8 python bench/mlp.py --checkpoint DIR     a layer of another one
    mpirun -n 8 python bench/mlp.py --model llama-70b    random weights of a known shape
    mpirun -n 8 python bench/mlp.py --codec mxfp4        and tp-aware with its all_reduce compressed

A row is one scheme at M tokens, for one MLP (the mean over the layers, where there are several):
codec       of the all_reduce's payload
time_us     median of the slowest rank's times; the exchange and the all_reduce are in it
wire_bytes  counted payload of the rank that sends most
max_err     largest deviation from the unsharded formula in float64
rel_err     the deviations' 2-norm over the formula's
spread      on a CPU: half the distance between the times' quartiles, over the median
speedup     time of `naive` over this one's; on a CPU the median of the ratios of each round, in which all schemes
            take turns, and `interval` holds that median with 95 % probability
check       ok: every element lies within the bound of its roundings (bench/truth/reference.py), all ranks hold the same
            bits, and tp-aware holds naive's (but not where a BLAS multiplies, NumPy arrays by default and CuPy's
            from dequant_from tokens on: it adds up a column in an order that depends on its place). A codec widens
            the bound by its own, of each rank's partial sum and (twoshot) of their sum. Else FAIL, the reason below
            the table, and exit status 1.

Below it: what the cost model projects for other machines, see bench/predict/mlp.py.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from harness import blas  # noqa: F401  before NumPy
from harness.flags import CARRIED, codecs, figure_file, names, positive_numbers
from harness.report import Column, Table, header, progress, pyplot, same_on_ranks, time_us, write_json
from models.shapes import MODELS, RandomCheckpoint
from predict.mlp import projected_lines, projected_rows
from truth.reference import Features, outside, reference_mlp, unit_roundoff
from truth.verifiable import coding_bound

import cutpq as cq
from cutpq.array import to_numpy
from cutpq.checkpoint.mlp_names import MlpModules
from cutpq.codecs.codec import Codec
from cutpq.codecs.formats import BLOCKS
from cutpq.cost.links import LINKS
from cutpq.kernels import load as kernels
from cutpq.ops.engine.choice import uses_engine
from cutpq.ops.gemm_config import dequant_from
from cutpq.ranks.communicator import Communicator
from cutpq.weights.schemes import count_groups, refusals
from cutpq.weights.weight import is_ordered

PROJECTED_MODELS = ("llama-70b", "granite-20b")
PROJECTED_LINKS = ("a100-nvlink", "h100-nvlink", "l4-pcie")
CHECKED_COLUMNS = 1024  # columns of y compared with float64; a larger y is sampled evenly

TABLE = Table(
    (
        Column("M", "M", 4),
        Column("scheme", "scheme", 10),
        Column("codec", "codec", 14),
        Column("time_us", "time_us", 11, ".1f"),
        Column("host_us", "host_us", 8, ".1f"),
        Column("wire_bytes", "wire_bytes", 11),
        Column("max_err", "max_err", 9, ".1e"),
        Column("rel_err", "rel_err", 8, ".1e"),
        Column("spread", "spread", 7, ".1%"),
        Column("speedup", "speedup", 8, ".2f"),
        Column("interval", "interval", 11),
        Column("check", "check", 6),
    )
)

Row = dict[str, Any]
Way = tuple[str, Codec | None]  # a scheme, and the codec of its all_reduce

# Rounds of all schemes at each M, on a CPU: as many as fit the budget, within these numbers.
LEAST_ROUNDS, ROUNDS, BUDGET_S = 9, 41, 0.9


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, write what was asked for; 1 where a check fails, 2 for a bad checkpoint."""
    args = parse(argv)
    comm = cq.init()
    try:
        job = load(args)
    except (cq.CheckpointError, ValueError) as error:
        if comm.rank == 0:
            print(f"mlp.py: {error}", file=sys.stderr)
        return 2
    rows, refused = measure(job, args, comm)
    failed = comm.bcast(not rows or any(row["check"] == "FAIL" for row in rows))
    if comm.rank == 0:
        projected = projected_rows([args.model] if args.model else PROJECTED_MODELS, args.project, args.m)
        print("\n".join([*header(comm), *job.describe(comm.size), *table(rows, refused)]))
        if projected:
            print("\n".join(["#", *projected_lines(projected)]))
        if args.json:
            write_json(args.json, [{k: v for k, v in row.items() if k != "why"} for row in rows] + projected)
        if args.plot:
            plot(args.plot, projected if args.plot_projected else rows)
    return 1 if failed else 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Flags, checked for what needs no file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--checkpoint", type=Path, metavar="DIR", help="a Hugging Face folder; default: the carried")
    source.add_argument("--model", choices=MODELS, help="random 4-bit weights of this model's shape")
    parser.add_argument("--layer", type=int, metavar="I", help="default: all of the carried checkpoint, 0 of another")
    parser.add_argument("--m", type=positive_numbers, metavar="M,M,...", help="tokens; default 1,2,4,8,16")
    parser.add_argument(
        "--schemes", type=names(cq.SCHEMES), default=cq.SCHEMES, metavar="S,S,...", help=f"of {', '.join(cq.SCHEMES)}"
    )
    parser.add_argument(
        "--codec",
        type=codecs,
        default=(),
        metavar="C,C,...",
        help="rows of tp-aware with these, as in cutpq/codecs/codec.py",
    )
    algos = ("oneshot", "twoshot", "hierarchical")
    parser.add_argument("--algo", choices=algos, default="twoshot", help="with a codec (twoshot)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write one object a row")
    parser.add_argument(
        "--plot", type=figure_file, metavar="FILE", help="latency against M per TP, naive beside tp-aware"
    )
    parser.add_argument(
        "--project",
        type=names([*LINKS, "none"]),
        metavar="LINK,...",
        help=f"links of the projected table: {', '.join(LINKS)} or none; --plot then shows the projected times",
    )
    parser.add_argument("--smoke", action="store_true", help="one layer, few repetitions: does everything work?")
    args = parser.parse_args(argv)
    args.m = args.m or ((1, 16) if args.smoke else (1, 2, 4, 8, 16))
    links = PROJECTED_LINKS if args.project is None else args.project
    args.plot_projected = args.project not in (None, ("none",))
    args.project = [link for link in links if link != "none"]
    return args


# --- what to run ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """MLPs of one checkpoint, by the names of their modules."""

    ckpt: Any
    mlps: tuple[MlpModules, ...]
    title: str

    @property
    def sizes(self) -> tuple[int, int, int]:
        """K input, H intermediate and N output features of the first MLP."""
        down = self.ckpt.shape(self.mlps[0].down)
        return self.ckpt.shape(self.mlps[0].up)[0], down[0], down[1]

    @property
    def group_size(self) -> int:
        """Of the second layer of the first MLP."""
        return int(self.ckpt.weight(self.mlps[0].down, columns=slice(0, 8)).group_size)

    def describe(self, tp: int) -> list[str]:
        """The job as header lines."""
        K, H, N = self.sizes
        orders = sum(not is_ordered(self.ckpt.g_idx(m.down)) for m in self.mlps)
        layers = f"{len(self.mlps)} MLPs, times are of one" if len(self.mlps) > 1 else "1 MLP"
        lines = [
            f"# {self.title}: {layers}; K={K} H={H} N={N} group_size={self.group_size} tp={tp}; "
            f"act-order in {orders} of {len(self.mlps)} second layers"
        ]
        if N > CHECKED_COLUMNS:
            lines.append(f"# check: {CHECKED_COLUMNS} of {N} columns of y against float64, all of them between ranks")
        return lines


def load(args: argparse.Namespace) -> Job:
    """The job that the flags ask for. Raises CheckpointError, or ValueError for a layer that is not there."""
    if args.model:
        random = RandomCheckpoint(MODELS[args.model])
        return Job(random, (random.modules,), f"{args.model}, random weights")
    ckpt = cq.open_checkpoint(args.checkpoint or CARRIED)
    every = cq.mlps(ckpt)
    quantized = set(ckpt.weights())
    every = [m for m in every if quantized.issuperset((*m.first, m.down))]
    if args.checkpoint is None and args.layer is None and not args.smoke:
        return Job(ckpt, tuple(every), ckpt.folder.name)
    layer = args.layer or 0
    found = [m for m in every if m.layer == layer]
    if not found:
        there = sorted({m.layer for m in every if m.layer is not None})
        raise ValueError(f"{ckpt.folder} has no quantized MLP in layer {layer}; layers that have: {there}")
    return Job(ckpt, tuple(found[:1]), f"{ckpt.folder.name} layer {layer}")


# --- measuring -----------------------------------------------------------------------------------------------------


def measure(job: Job, args: argparse.Namespace, comm: Communicator) -> tuple[list[Row], dict[str, str]]:
    """Rows (checked on rank 0 only), and the schemes that this many ranks refuse with the reason.

    The schemes take turns at each M, so that what else the machine does falls on all of them; so do the codecs of
    tp-aware.
    """
    K, H, N = job.sizes
    what = {"K": K, "H": H, "N": N, "group_size": job.group_size, "model": job.title}
    x = np.random.default_rng(0).standard_normal((max(args.m), K)).astype(np.float16)
    wanted = [(scheme, None) for scheme in args.schemes] + [("tp-aware", c) for c in args.codec]
    impossible = refuse(job, comm.size)
    refused = {scheme: impossible[scheme] for scheme, _ in wanted if scheme in impossible}
    ways = [(scheme, c) for scheme, c in wanted if scheme not in refused]
    rows = []
    with progress(1 + len(ways) * (1 + len(args.m)), "mlp", comm) as bar:
        targets = shared_targets(job, x, comm, [c for _, c in ways if c], args.algo)
        bar.update()
        mlps = {}
        for scheme, c in ways:
            how = {"comm": comm, "scheme": scheme, "codec": c, "algo": args.algo if c else "plain"}
            mlps[scheme, c] = [cq.Mlp.from_checkpoint(job.ckpt, modules=m, **how) for m in job.mlps]
            bar.update()
        for M in args.m:
            results = {}
            for way in ways:
                results[way] = run(mlps[way], comm.xp.asarray(x[:M]), comm, args.smoke)
                bar.update()
            if comm.xp is np:
                results = in_turns(results, mlps, x[:M], comm, args.smoke)
            naive = results.get(("naive", None))
            for (scheme, c), result in results.items():
                row = {"scheme": scheme, "codec": c and c.name, "tp": comm.size, "M": M} | what
                by_kernel = comm.xp is np or dequant_from(kernels.device(comm.xp)) > M  # else a BLAS multiplies
                twins = scheme == "tp-aware" and c is None and by_kernel and not uses_engine(comm.xp)
                rows.append(row | outcome(result, naive, targets[c], twins))
    return rows, refused


def refuse(job: Job, tp: int) -> dict[str, str]:
    """Schemes that are not possible on so many ranks, and why."""
    return refusals(min(count_groups(job.ckpt.g_idx(m.down)) for m in job.mlps), tp)


def outcome(result: Result, naive: Result | None, targets: list[Target], twins: bool) -> Row:
    """The figures of a result; `twins` if its bits must be those of naive's."""
    max_err, why = judge(result, targets, naive if twins else None)
    return {
        "time_us": round(result.time_us, 2),
        "host_us": result.host_us and round(result.host_us, 2),
        "wire_bytes": result.wire_bytes,
        "max_err": max_err,
        "rel_err": relative_error(result, targets),
        "spread": spread(result.times),
        **speedup(naive, result),
        "check": "FAIL" if why else "ok",
        "why": why,
        "projected": False,
    }


@dataclass(frozen=True)
class Result:
    """What one scheme gave at one M.

    ys       this rank's result of each layer
    digests  for each layer, one of every rank's result
    times    the slowest rank's, in us, of rounds in which all schemes took turns; none on a GPU
    """

    time_us: float
    host_us: float | None
    wire_bytes: int
    ys: list[np.ndarray]
    digests: list[list[bytes]]
    times: tuple[float, ...] = ()


def run(mlps: list[cq.Mlp], x: Any, comm: Communicator, smoke: bool) -> Result:
    """Call every MLP on x: once for the result and the bytes, then for the time."""
    comm.reset_sent()
    ys = [to_numpy(mlp(x)) for mlp in mlps]
    sent = int(to_numpy(comm.all_gather(comm.xp.asarray([comm.sent_bytes]))).max())
    mine = [hashlib.sha256(y.tobytes()).digest() for y in ys]
    joined = same_on_ranks(b"".join(mine), comm)  # one collective for all layers
    digests = [[of_rank[at : at + len(mine[0])] for of_rank in joined] for at in range(0, len(joined[0]), len(mine[0]))]
    if comm.xp is np:  # timed later, with the other schemes
        return Result(0.0, None, sent // len(mlps), ys, digests)
    took = time_us(lambda: [mlp(x) for mlp in mlps], comm, 3 if smoke else 20, 0.1 if smoke else 0.5)
    host_us = None if took.host_us is None else took.host_us / len(mlps)
    return Result(took.time_us / len(mlps), host_us, sent // len(mlps), ys, digests)


def in_turns(
    results: dict[Way, Result], mlps: dict[Way, list[cq.Mlp]], x: np.ndarray, comm: Communicator, smoke: bool
) -> dict[Way, Result]:
    """The results with their times, taken in rounds of every scheme once, each round beginning with another one.

    What else the machine does falls on neighbours alike, so that ratios within a round say more than medians do.
    """
    ways = list(results)
    times: dict[Way, list[float]] = {way: [] for way in ways}

    def take_turns(first: int) -> None:
        for way in ways[first:] + ways[:first]:
            comm.barrier()
            start = time.perf_counter()
            for mlp in mlps[way]:
                mlp(x)
            times[way].append((time.perf_counter() - start) * 1e6 / len(mlps[way]))

    start = time.perf_counter()
    take_turns(0)  # `run` has warmed up; this round says how long one takes, waits included
    once_s = time.perf_counter() - start
    rounds = 3 if smoke else comm.bcast(max(LEAST_ROUNDS, min(ROUNDS, int(BUDGET_S / once_s))))
    for turn in range(1, rounds):
        take_turns(turn % len(ways))
    slowest = comm.all_gather(np.array([times[way] for way in ways])).max(axis=0)
    return {
        way: replace(results[way], time_us=float(np.median(row)), times=tuple(row.tolist()))
        for way, row in zip(ways, slowest, strict=True)
    }


def spread(times: Sequence[float]) -> float | None:
    """Half the distance between the quartiles of the times, over their median."""
    if not times:
        return None
    low, middle, high = np.percentile(times, (25, 50, 75))
    return round(float((high - low) / 2 / middle), 4)


def speedup(naive: Result | None, result: Result) -> dict[str, Any]:
    """naive's time over this one's: of every round the ratio, their median, and the median's 95 % interval.

    The interval is that of order statistics: it assumes of the ratios that rounds are independent, and nothing else.
    """
    if naive is None or not result.times:
        ratio = round(naive.time_us / result.time_us, 4) if naive is not None and result.time_us else None
        return {"speedup": ratio, "speedup_low": None, "speedup_high": None, "interval": None}
    ratios = np.sort(np.divide(naive.times, result.times))
    n = len(ratios)
    below = max(0, math.floor((n - 1.96 * n**0.5) / 2))
    low, high = float(ratios[below]), float(ratios[n - 1 - below])
    return {
        "speedup": round(float(np.median(ratios)), 4),
        "speedup_low": round(low, 4),
        "speedup_high": round(high, 4),
        "interval": f"{low:.2f}..{high:.2f}",
    }


def beyond_the_spread(rows: list[Row]) -> list[str]:
    """Which schemes differ from naive by more than chance: the interval of the speedup leaves out 1."""
    lines = []
    for M in dict.fromkeys(row["M"] for row in rows):
        timed = [row for row in rows if row["M"] == M and row.get("speedup_low") and row["scheme"] != "naive"]
        quicker = [label(row) for row in timed if row["speedup_low"] > 1]
        slower = [label(row) for row in timed if row["speedup_high"] < 1]
        alike = [label(row) for row in timed if row["speedup_low"] <= 1 <= row["speedup_high"]]
        said = [f"{what} {', '.join(which)}" for what, which in
                (("quicker than naive:", quicker), ("slower:", slower), ("no telling:", alike)) if which]  # fmt: skip
        if said:
            lines.append(f"# M={M}: {'; '.join(said)}")
    return lines


@dataclass(frozen=True)
class Target:
    """The unsharded formula in float64 at some output columns, and the bound on what may differ."""

    columns: np.ndarray
    exact: np.ndarray
    bound: np.ndarray


def shared_targets(
    job: Job, x: np.ndarray, comm: Communicator, codecs: Sequence[Codec], algo: str
) -> dict[Codec | None, list[Target]]:
    """targets_by_codec on rank 0, to which each rank brings those of some MLPs; empty lists on the others."""
    mine = {}
    for i in range(comm.rank, len(job.mlps), comm.size):
        of_mlp = targets_by_codec(replace(job, mlps=job.mlps[i : i + 1]), x, comm.size, codecs, algo)
        mine[i] = [found[0] for found in of_mlp.values()]
    by_mlp = [comm.bcast(mine.get(i), root=i % comm.size) for i in range(len(job.mlps))]
    wanted = by_mlp if comm.rank == 0 else []
    return {c: [targets[at] for targets in wanted] for at, c in enumerate(dict.fromkeys((None, *codecs)))}


def targets_by_codec(
    job: Job, x: np.ndarray, tp: int, codecs: Sequence[Codec], algo: str
) -> dict[Codec | None, list[Target]]:
    """What each MLP must give for x on tp ranks, without a codec and with each."""
    N = job.sizes[2]
    columns = whole_blocks(N) if codecs else np.unique(np.linspace(0, N - 1, min(N, CHECKED_COLUMNS)).astype(np.int64))
    found: dict[Codec | None, list[Target]] = {None: [target(job, m, x, tp, columns) for m in job.mlps]}
    terms = [largest_terms(job, m, x, tp, columns) for m in job.mlps] if codecs else []
    for c in codecs:
        found[c] = [widen(plain, of_ranks, c, algo) for plain, of_ranks in zip(found[None], terms, strict=True)]
    return found


def whole_blocks(N: int) -> np.ndarray:
    """Columns to check where a codec's blocks must stay whole: runs of the largest block, or all columns."""
    run = max(BLOCKS)
    if N <= CHECKED_COLUMNS or N % run:
        return np.arange(N)
    runs = np.unique(np.linspace(0, N // run - 1, CHECKED_COLUMNS // run).astype(np.int64))
    return (runs[:, None] * run + np.arange(run)).reshape(-1)


def target(job: Job, modules: MlpModules, x: np.ndarray, tp: int, columns: np.ndarray) -> Target:
    """What an MLP must give for x on tp ranks."""
    H = job.ckpt.shape(modules.down)[0]
    blocks = (features(job, modules, np.arange(h, min(h + 2048, H)), columns) for h in range(0, H, 2048))
    exact, bound = reference_mlp(x, blocks, modules.activation, tp, bias(job, modules, columns))
    return Target(columns, exact, bound)


def largest_terms(job: Job, modules: MlpModules, x: np.ndarray, tp: int, columns: np.ndarray) -> list[np.ndarray]:
    """How large the partial sum of each rank under tp-aware may be, (M, columns) float64 each."""
    g_idx = job.ckpt.g_idx(modules.down)
    sorted_rows = np.argsort(g_idx, kind="stable")
    found = []
    for rank, rows in enumerate(np.split(sorted_rows, cq.group_bounds(g_idx, tp)[1:-1])):
        blocks = (features(job, modules, rows[h : h + 2048], columns) for h in range(0, len(rows), 2048))
        own_bias = bias(job, modules, columns) if rank == 0 else None
        exact, bound = reference_mlp(x, blocks, modules.activation, 1, own_bias)
        found.append(np.abs(exact) + bound)
    return found


def widen(plain: Target, terms: list[np.ndarray], codec: Codec, algo: str) -> Target:
    """The target of a compressed all_reduce: what the codec may add, and its rounding."""
    largest = (np.abs(plain.exact) + plain.bound).reshape(-1)
    coded = coding_bound([term.reshape(-1) for term in terms], largest, codec, algo).reshape(plain.exact.shape)
    return replace(plain, bound=plain.bound + (1 + unit_roundoff(np.float16)) * coded)


def bias(job: Job, modules: MlpModules, columns: np.ndarray) -> np.ndarray | None:
    """The second product's bias."""
    return job.ckpt.weight(modules.down, rows=slice(0, 8), columns=columns).bias


def features(job: Job, modules: MlpModules, wanted: np.ndarray, columns: np.ndarray) -> Features:
    """Some intermediate features of an MLP, with these columns of its second weight."""
    ckpt, H = job.ckpt, job.ckpt.shape(modules.down)[0]
    up = ckpt.weight(modules.up, columns=H + wanted if modules.fused else wanted)
    down = ckpt.weight(modules.down, rows=wanted, columns=columns)
    if modules.gate is None:
        return Features(None, cq.dequantize(up), cq.dequantize(down), up_bias=up.bias)
    gate = ckpt.weight(modules.gate, columns=wanted)
    return Features(cq.dequantize(gate), cq.dequantize(up), cq.dequantize(down), gate.bias, up.bias)


def judge(result: Result, targets: list[Target], twin: Result | None) -> tuple[float, list[str]]:
    """Largest error, and what is wrong with a result: nothing, if it is right.

    targets  one for each layer; none on ranks that do not check
    twin     a result that must have the same bits
    """
    max_err, why = 0.0, []
    for layer, target in enumerate(targets):
        y = result.ys[layer]
        M = len(y)
        exact, bound = target.exact[:M], target.bound[:M]
        at_columns = y[:, target.columns]
        wrong = outside(at_columns, exact, bound)
        if wrong.any():
            why.append(f"layer {layer}: {wrong.sum()} of {wrong.size} elements outside the bound")
        max_err = float(np.maximum(max_err, np.abs(at_columns.astype(np.float64) - exact).max()))
        if len(set(result.digests[layer])) != 1:
            why.append(f"layer {layer}: ranks hold different results")
        if twin is not None and result.digests[layer] != twin.digests[layer]:
            why.append(f"layer {layer}: tp-aware and naive differ")
    return max_err, why


def relative_error(result: Result, targets: list[Target]) -> float:
    """The 2-norm of all deviations over that of the exact results."""
    noise = signal = 0.0
    for y, target in zip(result.ys, targets, strict=False):
        exact = target.exact[: len(y)]
        noise += float(((y[:, target.columns].astype(np.float64) - exact) ** 2).sum())
        signal += float((exact**2).sum())
    return math.sqrt(noise / signal) if signal else 0.0


# --- showing -------------------------------------------------------------------------------------------------------


def table(rows: list[Row], refused: dict[str, str]) -> list[str]:
    """The measured table, with what was refused and what failed below it."""
    lines = [TABLE.heading(), *(TABLE.line(row) for row in rows), *beyond_the_spread(rows)]
    lines += [f"# {scheme}: not run: {why}" for scheme, why in refused.items()]
    return lines + [f"# FAIL {label(row)} M={row['M']}: {why}" for row in rows for why in row["why"]]


def label(row: Row) -> str:
    """A row's scheme, and its codec, if any."""
    return f"{row['scheme']} {row['codec']}" if row["codec"] else row["scheme"]


def plot(path: Path, rows: list[Row]) -> None:
    """Latency against M per TP, naive and tp-aware side by side: the paper's figures 5 to 8."""
    kinds = list(dict.fromkeys(kind(row) for row in rows))
    tps = sorted({row["tp"] for row in rows})
    figure, axes = pyplot().subplots(
        len(kinds), len(tps), figsize=(3 * len(tps) + 1, 2.6 * len(kinds)), squeeze=False, layout="constrained"
    )
    for line, of_kind in zip(axes, kinds, strict=True):
        for axis, tp in zip(line, tps, strict=True):
            panel = [row for row in rows if kind(row) == of_kind and row["tp"] == tp]
            tokens = sorted({row["M"] for row in panel})
            for offset, scheme in ((-0.2, "naive"), (0.2, "tp-aware")):
                of_scheme = [row for row in panel if row["scheme"] == scheme and not row.get("codec")]
                times = {row["M"]: row["time_us"] for row in of_scheme}
                at = [tokens.index(M) + offset for M in times]
                axis.bar(at, list(times.values()), width=0.4, label=scheme)
            axis.set_xticks(range(len(tokens)), [str(M) for M in tokens])
            axis.set_title(f"{of_kind}\nTP={tp}", fontsize="small")
            axis.set_xlabel("M")
        line[0].set_ylabel("time_us")
        line[0].legend(fontsize="small", loc="lower right")
    figure.savefig(path)


def kind(row: Row) -> str:
    """What a line of panels shows."""
    return f"PROJECTED {row['model']} {row['weights']} {row['link']}" if row["projected"] else row["model"]


if __name__ == "__main__":
    sys.exit(main())
