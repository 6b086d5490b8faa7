"""Sums, an MLP and a 70B forward pass on paper, over 8 to 1,024 GPUs in nodes of eight; the sums simulated, too.

    python bench/scale.py                                        H100 over ib-ndr400
    python bench/scale.py --link l4-pcie --between eth-25g --tokens 16 --plot scale.png

Nothing here is measured: all times are PROJECTED by cutpq/cost from NCCL's constants and data sheets.

First table, a sum of tokens x 8192 numbers of float16 over all ranks, by algorithm:
time(us)   by the closed formulas of cost/nodes.py
sim(us)    by a simulation of each message, with queues at the cables (bench/predict/messages.py)
diff       of the simulation from the formula; more than 10 % fails (cables much quicker than the link inside do)
best       marks the quickest

Second table, tensor parallelism over more and more ranks, sums by the quickest algorithm with the codec:
mlp, pass  time in us of one MLP of Llama-2-70B and of a forward pass of the whole model, 4-bit weights
speedup    over the 8 ranks of one node
eff        speedup over the ranks that it takes: with replicas or a pipeline of nodes it would stay at 1
"-" stands where ranks cannot share the model: 64 heads, 224 groups of an MLP.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.flags import at_least, figure_file
from harness.report import Column, Table, write_json
from predict.messages import Machine, pairs_us, ring_us

import cutpq as cq
from cutpq.cost.gpus import GPUS, INT4
from cutpq.cost.links import LINKS
from cutpq.cost.mlp import MlpShape, mlp_cost
from cutpq.cost.nodes import CABLES, Network, choose_shots, kernels_us, transfers_us
from cutpq.cost.transformer import ModelShape, Step, reduce_us, step_cost

PER_NODE, HIDDEN = 8, 8192
LLAMA_70B = ModelShape("llama-2-70b", 80, HIDDEN, 64, 8, 128, 28672, 32000)
MLP_70B = MlpShape("llama-2-70b", HIDDEN, 28672, HIDDEN, gated=True)
ALGOS = ("plain", "twoshot", "hierarchical")

SUMS = Table(
    (
        Column("ranks", "ranks", 5),
        Column("algo", "algo", 12),
        Column("time_us", "time(us)", 9, ".0f"),
        Column("sim_us", "sim(us)", 9, ".0f"),
        Column("diff", "diff", 6, ".1%"),
        Column("best", "best", 4),
        Column("check", "check", 5),
    )
)
MODELS = Table(
    (
        Column("ranks", "ranks", 5),
        Column("mlp_us", "mlp(us)", 9, ".1f"),
        Column("mlp_speedup", "speedup", 7, ".2f"),
        Column("mlp_eff", "eff", 5, ".2f"),
        Column("pass_us", "pass(us)", 10, ".0f"),
        Column("pass_speedup", "speedup", 7, ".2f"),
        Column("pass_eff", "eff", 5, ".2f"),
        Column("sum", "sum by", 12),
    )
)

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Print both tables; 1 where the simulation and the formula disagree."""
    args = parse(argv)
    link, cable = LINKS[args.link], CABLES[args.between]
    network = Network.of(link, cable, PER_NODE)
    codec = cq.codec(args.codec)
    print(f"# PROJECTED, not measured: {network.name}, {codec.name}, {args.tokens} tokens")
    print(SUMS.heading())
    ranks = [PER_NODE << doubling for doubling in range(8) if PER_NODE << doubling <= args.most]
    sums = [row for n in ranks for row in sum_rows(n, args.tokens * HIDDEN, codec, network)]
    print("\n".join(map(SUMS.line, sums)))
    print(f"\n{MODELS.heading()}")
    models = model_rows(ranks, args.tokens, codec, network)
    print("\n".join(map(MODELS.line, models)))
    if args.json:
        write_json(args.json, [*sums, *models])
    if args.plot:
        plot(sums, models, network.name, args.plot)
    return 1 if any(row["check"] == "FAIL" for row in sums) else 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--link", choices=LINKS, default="h100-nvlink", help="inside nodes (h100-nvlink)")
    parser.add_argument("--between", choices=CABLES, default="ib-ndr400", help="between nodes (ib-ndr400)")
    parser.add_argument("--tokens", type=at_least(1), default=1024, metavar="M", help="of a call (1024)")
    parser.add_argument("--codec", default="mxfp4", help="(mxfp4)")
    parser.add_argument("--most", type=at_least(PER_NODE), default=1024, metavar="N", help="ranks at most (1024)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write one object a row")
    parser.add_argument(
        "--plot", type=figure_file, metavar="FILE", help="time of the sums and efficiency against ranks"
    )
    return parser.parse_args(argv)


def sum_rows(n: int, count: int, codec: cq.Codec, network: Network) -> list[Row]:
    """A row for each algorithm on n ranks."""
    rows: list[Row] = []
    for algo in ALGOS if n > network.per_node else ALGOS[:2]:  # on one node the hierarchical sum is the plain one
        what = algo, count, 2, network.nodes(n), None if algo == "plain" else codec, network.inside, network.cable
        computing_us, formula_us = kernels_us(*what), transfers_us(*what)
        sim_us = simulated_us(algo, n, count, codec, network)
        diff = sim_us / formula_us - 1
        row = {"ranks": n, "algo": algo, "time_us": formula_us + computing_us, "sim_us": sim_us + computing_us}
        rows.append(row | {"diff": diff, "check": "ok" if abs(diff) <= 0.1 else "FAIL"})
    best = min(rows, key=lambda row: row["time_us"])
    return [row | {"best": "<" if row is best else ""} for row in rows]


def simulated_us(algo: str, n: int, count: int, codec: cq.Codec, network: Network) -> float:
    """What the transfers of a sum take, message by message."""
    machine = Machine(n, network.per_node, network.inside, network.cable)
    p, S, wire = network.per_node, 2 * count, codec.wire_bytes(codec.padded(count))
    if algo == "plain":
        return ring_us(machine, 2 * (n - 1), S / n)
    if algo == "twoshot":
        return 2 * pairs_us(machine, n - 1, 1, wire / n)
    inside = Machine(p, p, network.inside, network.cable)
    nodes = network.nodes(n)
    shots = choose_shots(count, nodes, codec, network.cable)
    terms, parts = (nodes.count, 1) if shots == "oneshot" else (1, nodes.count)
    exchanges = 1 if shots == "oneshot" else 2
    between_us = exchanges * pairs_us(machine, nodes.count - 1, p, wire / p / parts)
    return pairs_us(inside, p - 1, 1, S / p) + between_us + ring_us(inside, p - 1, terms * wire / p)


def model_rows(ranks: list[int], tokens: int, codec: cq.Codec, network: Network) -> list[Row]:
    """A row for each number of ranks that tensor parallelism takes."""
    gpu, rows = GPUS[network.gpu], []
    first: dict[str, float] = {}
    for n in ranks:
        sum_us, algo = reduce_us(tokens * HIDDEN, n, network, codec)
        row: Row = {"ranks": n, "sum": algo}
        if n <= INT4.groups(MLP_70B.H):
            mlp = mlp_cost(MLP_70B, tokens, n, "tp-aware", INT4, gpu, network)
            row["mlp_us"] = mlp.total_us - mlp.all_reduce_us + sum_us
        if n <= LLAMA_70B.heads:
            row["pass_us"] = step_cost(LLAMA_70B, Step(1, tokens), n, INT4, gpu, network, codec).total_us
        for what in ("mlp", "pass"):
            if f"{what}_us" in row:
                speedup = first.setdefault(what, row[f"{what}_us"]) / row[f"{what}_us"]
                row |= {f"{what}_speedup": speedup, f"{what}_eff": speedup * ranks[0] / n}
        rows.append(row)
    return rows


def plot(sums: list[Row], models: list[Row], title: str, file: Path) -> None:
    """Times of the sums, formula and simulation, and what is left of each rank's work, against the number of ranks."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for algo in ALGOS:
        rows = [row for row in sums if row["algo"] == algo]
        (line,) = left.plot([r["ranks"] for r in rows], [r["time_us"] for r in rows], label=algo)
        left.plot([r["ranks"] for r in rows], [r["sim_us"] for r in rows], "x", color=line.get_color())
    left.set(
        xscale="log", yscale="log", xlabel="ranks", ylabel="us", title="one sum: lines formula, crosses simulation"
    )
    left.legend()
    for what in ("mlp", "pass"):
        rows = [row for row in models if f"{what}_eff" in row]
        right.plot([r["ranks"] for r in rows], [r[f"{what}_eff"] for r in rows], "o-", label=what)
    right.set(xscale="log", xlabel="ranks of tensor parallelism", ylabel="efficiency", ylim=(0, 1.05))
    right.legend()
    figure.suptitle(f"PROJECTED: {title}")
    figure.savefig(file)


if __name__ == "__main__":
    sys.exit(main())
