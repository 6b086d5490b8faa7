"""Does compression help? Time to first token (TTFT), and per output token (TPOT), with and without a codec.

    python bench/ttft.py                                   the carried model runs, 2 ranks; others are projected
    mpirun -n 8 python bench/ttft.py --checkpoint DIR      a real checkpoint runs on as many ranks
    mpirun -n 8 python bench/ttft.py --model llama-3-70b   random weights of that shape, on 8 GPUs
    python bench/ttft.py --model llama-3-70b --tp 8        one GPU: one rank's compute measured, its collectives
                                                           projected; no GPU: all projected

Measured, projected and mixed numbers stand in tables of their own, and their sums say what they are:

ttft_ms    of a prompt, batch x length, until the logits of its last tokens are there
tpot_ms    for each token after it, one of every sequence
compute_ms of one rank at its shard's shapes, its peers silent; ttft_projected_ms is that plus projected collectives
check      ok: the logits are finite, and all ranks hold the same, bit for bit

Times are the median of the slowest rank's. --plot shows where a block's time goes.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness.blas_single  # noqa: F401  before NumPy
import numpy as np
from harness.flags import CARRIED, codecs, figure_file, names, positive_numbers, prompts
from harness.report import Column, Table, header, latency_us, progress, pyplot, same_on_ranks, write_json
from models.random_model import RandomModel
from models.shapes import TRANSFORMERS
from models.silent import SilentCommunicator
from predict.ttft import WEIGHTS, projected_lines, projected_rows

import cutpq as cq
from cutpq.array import to_numpy
from cutpq.cost.links import LINKS
from cutpq.ranks.communicator import Communicator
from cutpq.trace import record

MODELS = "llama-3-8b,llama-2-70b,granite-20b"
CODECS = "mxfp4,int4-b8,e2m2-b32"  # the run without a codec comes first anyway
PARTS = ("norm", "qkv", "attention", "o_proj", "all_reduce_1", "mlp", "all_reduce_2")
DISTINCT_BLOCKS = 4  # blocks of random weights, used in turn: together they exceed a GPU's L2

MEASURED = Table(
    (
        Column("model", "model", 12),
        Column("tp", "tp", 2),
        Column("prompt", "prompt", 8),
        Column("codec", "codec", 12),
        Column("algo", "algo", 7),
        Column("ttft_ms", "ttft_ms", 9, ".2f"),
        Column("tpot_ms", "tpot_ms", 8, ".2f"),
        *(Column(f"block {part}", f"{part}_us", len(part) + 3, ".0f") for part in PARTS),
        Column("check", "check", 5),
    )
)

MIXED = Table(
    (
        Column("model", "model", 12),
        Column("link", "link", 11),
        Column("tp", "tp", 2),
        Column("prompt", "prompt", 8),
        Column("codec", "codec", 12),
        Column("compute_ms", "compute_ms", 10, ".2f"),
        Column("projected_collectives_ms", "projected_collectives_ms", 24, ".2f"),
        Column("ttft_projected_ms", "ttft_projected_ms", 17, ".2f"),
        Column("check", "check", 5),
    )
)

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, write what was asked for; 1 where a check fails, 2 for input that cannot be used."""
    args = parse(argv)
    comm = cq.init()
    try:
        measured, mixed = measure(args, comm)
    except (cq.CheckpointError, ValueError) as error:
        if comm.rank == 0:
            print(f"ttft.py: {error}", file=sys.stderr)
        return 2
    failed = comm.bcast(any(row["check"] == "FAIL" for row in [*measured, *mixed]))
    if comm.rank == 0:
        models = args.model or MODELS.split(",")
        projected = projected_rows(models, args.weights, args.link, args.tp, args.prompt, args.codec)
        print("\n".join(header(comm)))
        if measured:
            ranks = "" if comm.size > 1 else ", ranks are threads of this process"
            print(f"# measured{ranks}; *_us: a block's share of a prefill, each part timed by itself")
            print("\n".join([MEASURED.heading(), *(MEASURED.line(flat(row)) for row in measured)]))
        if mixed:
            print("# compute_ms measured on one rank at its shard's shapes; collectives, and so the sum, PROJECTED")
            print("\n".join([MIXED.heading(), *(MIXED.line(flat(row)) for row in mixed)]))
        print("\n".join(projected_lines(projected)))
        if args.json:
            write_json(args.json, [*measured, *mixed, *projected])
        if args.plot:
            plot(args.plot, measured, projected)
    return 1 if failed else 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Flags, checked for what needs no file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="a Hugging Face folder to run; default: carried")
    parser.add_argument("--model", type=names(TRANSFORMERS), metavar="NAME,...", help=f"of {', '.join(TRANSFORMERS)}")
    parser.add_argument("--weights", type=names(WEIGHTS), default=["int4"], help="int4, fp16 (int4)")
    parser.add_argument(
        "--tp", type=positive_numbers, default=[2, 8], metavar="N,...", help="ranks of projections (2,8)"
    )
    parser.add_argument(
        "--prompt",
        type=prompts,
        metavar="BxT,...",
        help="batch x length (1x128,16x128,8x1024; 1x128,4x128,16x32 where it runs)",
    )
    parser.add_argument("--codec", type=codecs, default=CODECS, metavar="C,...", help=f"default {CODECS}")
    parser.add_argument("--algo", choices=("auto", "oneshot", "twoshot"), default="twoshot", help="in what runs")
    parser.add_argument(
        "--link",
        type=names(LINKS),
        default=["l4-pcie-2s", "l4-pcie", "a100-nvlink", "h100-nvlink"],
        help=f"of {', '.join(LINKS)}",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write one object a row")
    parser.add_argument("--plot", type=figure_file, metavar="FILE", help="a block's time by its parts")
    parser.add_argument("--smoke", action="store_true", help="few repetitions of a short prompt: does everything work?")
    args = parser.parse_args(argv)
    args.codec = [None, *args.codec]
    args.run_prompts = args.prompt or ([(2, 8)] if args.smoke else [(1, 128), (4, 128), (16, 32)])
    args.prompt = args.prompt or [(1, 128), (16, 128), (8, 1024)]
    return args


# --- measuring -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """What one rank runs: a checkpoint, real or random, and how long its model really is."""

    ckpt: Any
    title: str
    weights: str | None = None
    layers: int | None = None  # None: those of the checkpoint


def measure(args: argparse.Namespace, comm: Communicator) -> tuple[list[Row], list[Row]]:
    """Rows of what ran whole, and of single ranks whose peers are projected. Complete on rank 0."""
    if args.checkpoint or not args.model:
        ckpt = cq.open_checkpoint(args.checkpoint or CARRIED)
        job = Job(ckpt, ckpt.folder.name)
        if comm.size > 1:
            return run(comm, args, job), []
        return cq.run_threads(2, run, args, job, xp=comm.xp)[0], []
    if comm.xp is np:
        return [], []  # a model of random weights is too large for the CPU
    measured, mixed = [], []
    for name in args.model:
        for weights in args.weights:
            job = random_job(TRANSFORMERS[name], weights)
            if comm.size > 1 or args.tp == (1,):
                measured += run(comm, args, job)
            else:
                mixed += [row for tp in args.tp for row in run_shard(comm, args, job, tp)]
    return measured, mixed


def random_job(shape: Any, weights: str) -> Job:
    """A model of random weights; its blocks are a few, used in turn."""
    bits = WEIGHTS[weights].bits
    return Job(RandomModel(shape, min(shape.layers, DISTINCT_BLOCKS), bits), shape.name, weights, shape.layers)


def load(job: Job, comm: Communicator) -> cq.Transformer:
    """The rank's part of the job's model."""
    model = cq.load_model(job.ckpt, comm)
    if job.layers is not None:
        model.blocks = [model.blocks[i % len(model.blocks)] for i in range(job.layers)]
    return model


def run(comm: Communicator, args: argparse.Namespace, job: Job) -> list[Row]:
    """One rank of a whole model: a row for each prompt and codec. The codecs take turns."""
    model = load(job, comm)
    every = args.codec if comm.size > 1 else [None]
    rows = []
    with progress(len(args.run_prompts) * len(every), job.title, comm) as bar:
        for batch, length in args.run_prompts:
            for codec in every:
                model.use_codec(codec, args.algo if codec else "plain")
                figures, logits = time_prompt(model, comm, batch, length, args.smoke)
                digests = same_on_ranks(hashlib.sha256(logits.tobytes()).digest(), comm)
                row = describe(job, comm.size, batch, length, codec) | figures
                row["algo"] = "plain" if codec is None else args.algo
                row["check"] = "ok" if is_finite(logits) and len(set(digests)) == 1 else "FAIL"
                rows.append(row)
                bar.update()
    return rows


def run_shard(comm: Communicator, args: argparse.Namespace, job: Job, tp: int) -> list[Row]:
    """Rank 0 of `tp`, alone: its compute measured, the collectives of each link and codec projected."""
    silent = SilentCommunicator(tp, comm)
    model = load(job, silent)
    rows = []
    for batch, length in args.run_prompts:
        figures, logits = time_prompt(model, silent, batch, length, args.smoke)
        mine = describe(job, tp, batch, length, None) | {
            "compute_ms": figures["ttft_ms"],
            "compute_per_token_ms": figures["tpot_ms"],
            "block_us": figures["block_us"],
            "check": "ok" if is_finite(logits) else "FAIL",
            "projected": "collectives",
        }
        for row in projected_rows([job.title], [str(job.weights)], args.link, [tp], [(batch, length)], args.codec):
            theirs = {key: row[key] for key in ("link", "codec", "algo", "projected_collectives_ms")}
            total_ms = mine["compute_ms"] + row["projected_collectives_ms"]
            rows.append(mine | theirs | {"ttft_projected_ms": total_ms})
    return rows


def describe(job: Job, tp: int, batch: int, length: int, codec: cq.Codec | None) -> Row:
    """What was run."""
    return {
        "model": job.title,
        "weights": job.weights,
        "tp": tp,
        "batch": batch,
        "length": length,
        "codec": "none" if codec is None else codec.name,
        "projected": False,
    }


def time_prompt(
    model: cq.Transformer, comm: Communicator, batch: int, length: int, smoke: bool
) -> tuple[Row, np.ndarray]:
    """TTFT of a prompt of random tokens, TPOT after it, where a block's time went; and the logits of both."""
    tokens = np.random.default_rng(0).integers(0, model.decoder.vocabulary, (batch, length))
    following = tokens[:, -1:]
    cache = model.new_cache(batch, length + 1)
    kept: list[Any] = []

    def prefill() -> None:
        cache.lengths[:] = 0  # without clearing: old keys are finite, and overwritten
        kept[:] = [model(tokens, cache, last_only=True)]

    def decode() -> None:
        cache.lengths[:] = length
        kept[:] = [model(following, cache, last_only=True)]

    iterations, budget_s = (1, 0.1) if smoke else (10, 2.0)
    prefill_us = latency_us(prefill, comm, iterations, budget_s)
    first = to_numpy(kept[0])
    with record(comm.barrier) as seconds:
        prefill()
    decode_us = latency_us(decode, comm, iterations, budget_s)
    figures = {
        "ttft_ms": prefill_us / 1e3,
        "tpot_ms": decode_us / 1e3,
        "block_us": breakdown(seconds, len(model.blocks)),
    }
    return figures, np.concatenate([first, to_numpy(kept[0])])


def is_finite(logits: np.ndarray) -> bool:
    """Whether no logit is NaN or infinite."""
    return bool(np.isfinite(logits.astype(np.float32)).all())


def breakdown(seconds: dict[tuple[str, ...], float], blocks: int) -> dict[str, float]:
    """us of each part in one block; a part's all_reduce, and the norm that follows it, are counted by themselves.

    Where a kernel makes the norm as it decodes the sum, its time is the all_reduce's.
    """
    found = {name: seconds.get((name,), 0.0) for name in ("norm", "qkv", "attention", "o_proj", "mlp")}
    for part, name in (("o_proj", "all_reduce_1"), ("mlp", "all_reduce_2")):
        found[name], norm = (seconds.get((part, inner), 0.0) for inner in ("all_reduce", "norm"))
        found[part] -= found[name] + norm
        found["norm"] += norm
    return {part: found[part] * 1e6 / blocks for part in PARTS}


# --- showing -------------------------------------------------------------------------------------------------------


def flat(row: Row) -> Row:
    """A row as the tables want it."""
    parts = {f"block {part}": us for part, us in row["block_us"].items()}
    return row | parts | {"prompt": f"{row['batch']}x{row['length']}"}


def plot(path: Path, measured: list[Row], projected: list[Row]) -> None:
    """A block's time as stacked bars, one for each tp and codec: measured, and projected on each link."""
    panels = []
    if measured:
        last = [row for row in measured if (row["batch"], row["length"]) == _prompt(measured[-1])]
        panels.append((f"measured\n{last[0]['model']}, {last[0]['batch']}x{last[0]['length']}", "block_us", last))
    for link in dict.fromkeys(row["link"] for row in projected):
        of_link = [row for row in projected if (row["link"], row["model"]) == (link, projected[0]["model"])]
        last = [row for row in of_link if _prompt(row) == _prompt(of_link[-1])]
        title = f"PROJECTED, {link}\n{last[0]['model']}, {last[0]['batch']}x{last[0]['length']}"
        panels.append((title, "projected_block_us", last))
    figure, axes = pyplot().subplots(
        1, len(panels), figsize=(3.6 * len(panels), 4), squeeze=False, layout="constrained"
    )
    for axis, (title, key, shown) in zip(axes[0], panels, strict=True):
        bottom = np.zeros(len(shown))
        for part in PARTS:
            heights = np.array([row[key][part] for row in shown])
            axis.bar(range(len(shown)), heights, bottom=bottom, label=part)
            bottom += heights
        labels = [f"tp={row['tp']} {row['codec']}" for row in shown]
        axis.set_xticks(range(len(shown)), labels, rotation=90, fontsize="x-small")
        axis.set_title(title, fontsize="small")
        axis.set_ylabel("us of one block")
    axes[0][-1].legend(fontsize="x-small")
    figure.savefig(path)


def _prompt(row: Row) -> tuple[int, int]:
    return row["batch"], row["length"]


if __name__ == "__main__":
    sys.exit(main())
