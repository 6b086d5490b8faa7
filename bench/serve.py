"""How fast are texts made? Throughput and latency of a closed batch of requests, by batch, tp and codec.

    python bench/serve.py                                       the carried model, ranks are threads: 2 to 3 minutes
    mpirun -n 4 python bench/serve.py --checkpoint DIR          a real checkpoint, ranks are processes
    mpirun -n 8 python bench/serve.py --model llama-3-8b        random weights of that shape, on GPUs

A batch of requests starts together, runs to its end, and another follows: nothing is scheduled. How long prompts and
texts are is drawn evenly from --prompt and --output, by --seed, the same for every row. A request leaves the batch
when its text is long enough. Columns:

requests     in all batches
new_tokens   of all requests
tokens_per_s new_tokens over the time of all batches, prefill included
ttft         ms from the start of a batch to its first tokens, the same for its requests: p50 and p99 of all requests
tpot         ms from one token of a request to its next: p50 and p99 of all tokens but the first
sent_bytes   for each new token, by the rank that sends most
check        ok: on all ranks every step's logits are finite and the same, bit for bit, and every request has its tokens

Times are rank 0's, which draws the tokens and tells the others. The batch of the check comes first, with texts of a
quarter of the length, and is not timed. On a CPU a decode step of the carried model is several thousand short calls,
during which Python's lock is held: two ranks as threads take nearly as long as one after the other would.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness.blas_single  # noqa: F401  before NumPy
import numpy as np
from harness.flags import CARRIED, at_least, codecs, figure_file, names, positive_numbers
from harness.report import Column, Table, header, progress, pyplot, same_on_ranks, write_json
from models.shapes import TRANSFORMERS
from ttft import Job, is_finite, load, random_job

import cutpq as cq
from cutpq.array import ceil_div, to_numpy
from cutpq.ranks.communicator import Communicator

TABLE = Table(
    (
        Column("model", "model", 12),
        Column("tp", "tp", 2),
        Column("batch", "batch", 5),
        Column("codec", "codec", 12),
        Column("algo", "algo", 7),
        Column("requests", "requests", 8),
        Column("new_tokens", "new_tokens", 10),
        Column("tokens_per_s", "tokens_per_s", 12, ".1f"),
        Column("ttft_p50_ms", "ttft_p50_ms", 11, ".2f"),
        Column("ttft_p99_ms", "ttft_p99_ms", 11, ".2f"),
        Column("tpot_p50_ms", "tpot_p50_ms", 11, ".2f"),
        Column("tpot_p99_ms", "tpot_p99_ms", 11, ".2f"),
        Column("sent_bytes", "sent_bytes", 10, ".0f"),
        Column("check", "check", 5),
    )
)

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    comm = cq.init()
    try:
        rows = measure(args, comm)
    except (cq.CheckpointError, ValueError) as error:
        if comm.rank == 0:
            print(f"serve.py: {error}", file=sys.stderr)
        return 2
    failed = comm.bcast(any(row["check"] == "FAIL" for row in rows))
    if comm.rank == 0:
        print("\n".join(header(comm)))
        how = "processes" if comm.size > 1 else "threads of this process"
        drawn = "prompts of {} to {} tokens, texts of {} to {}".format(*args.prompt, *args.output)
        print(f"# ranks are {how}; {drawn}, seed {args.seed}")
        print("\n".join([TABLE.heading(), *(TABLE.line(row) for row in rows)]))
        if args.json:
            write_json(args.json, rows)
        if args.plot:
            plot(args.plot, rows)
    return 1 if failed else 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Flags, checked for what needs no file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="a Hugging Face folder to run; default: carried")
    parser.add_argument("--model", type=names(TRANSFORMERS), metavar="NAME,...", help="random weights, on GPUs")
    parser.add_argument("--batch", type=positive_numbers, metavar="N,...", help="requests of a batch (1,8,32)")
    parser.add_argument("--tp", type=positive_numbers, default=(1, 2), metavar="N,...", help="ranks as threads (1,2)")
    parser.add_argument("--codec", type=codecs, default=codecs("mxfp4"), metavar="C,...", help="default mxfp4")
    parser.add_argument("--algo", choices=("auto", "oneshot", "twoshot"), default="twoshot", help="of the codecs")
    parser.add_argument("--prompt", type=span, metavar="A-B", help="tokens of a prompt (32-512)")
    parser.add_argument("--output", type=span, metavar="A-B", help="tokens of a text (16-128)")
    parser.add_argument("--requests", type=at_least(1), metavar="N", help="of a row, at least, in whole batches (8)")
    parser.add_argument("--seed", type=at_least(0), default=0, metavar="S", help="of the lengths and prompts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write one object a row")
    parser.add_argument("--plot", type=figure_file, metavar="FILE", help="throughput and latency against the batch")
    parser.add_argument("--smoke", action="store_true", help="few short requests: does everything work?")
    args = parser.parse_args(argv)
    args.batch = args.batch or ((1, 2) if args.smoke else (1, 8, 32))
    args.prompt = args.prompt or ((4, 12) if args.smoke else (32, 512))
    args.output = args.output or ((2, 5) if args.smoke else (16, 128))
    args.requests = args.requests or (1 if args.smoke else 8)
    return args


def span(text: str) -> tuple[int, int]:
    """ "16-128" -> (16, 128): both ends belong to it."""
    ends = text.split("-")
    if not (len(ends) == 2 and all(end.isdecimal() for end in ends) and 1 <= int(ends[0]) <= int(ends[1])):
        raise argparse.ArgumentTypeError(f"{text!r} is not two whole numbers of at least 1, the less first: 16-128")
    return int(ends[0]), int(ends[1])


# --- measuring -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Requests:
    """Requests that start together: prompts, and how many tokens each wants."""

    prompts: list[list[int]]
    wanted: list[int]


def draw(args: argparse.Namespace, batch: int, number: int, vocabulary: int) -> Requests:
    """The requests of a batch: a function of seed, batch size and number."""
    rng = np.random.default_rng([args.seed, batch, number])
    lengths = rng.integers(args.prompt[0], args.prompt[1] + 1, batch)
    wanted = rng.integers(args.output[0], args.output[1] + 1, batch)
    return Requests([rng.integers(0, vocabulary, n).tolist() for n in lengths], wanted.tolist())


def shortened(requests: Requests) -> Requests:
    """The same prompts, with texts of a quarter of the length."""
    return Requests(requests.prompts, [ceil_div(n, 4) for n in requests.wanted])


def measure(args: argparse.Namespace, comm: Communicator) -> list[Row]:
    """Rows of every model, tp, batch and codec; complete on rank 0."""
    if args.model and comm.xp is np:
        raise ValueError("--model needs a GPU for each rank: a model of random weights is too large for the CPU")
    jobs = [random_job(TRANSFORMERS[name], "int4") for name in args.model or ()]
    if not jobs:
        ckpt = cq.open_checkpoint(args.checkpoint or CARRIED)
        jobs = [Job(ckpt, ckpt.folder.name)]
    if comm.size > 1:
        return [row for job in jobs for row in run(comm, args, job)]
    return [row for job in jobs for tp in args.tp for row in cq.run_threads(tp, run, args, job, xp=comm.xp)[0]]


def run(comm: Communicator, args: argparse.Namespace, job: Job) -> list[Row]:
    """One rank: a row for each batch size and codec."""
    model = load(job, comm)
    every = (None, *args.codec) if comm.size > 1 else (None,)
    rows = []
    with progress(len(args.batch) * len(every), f"{job.title}, tp {comm.size}", comm) as bar:
        for batch in args.batch:
            for codec in every:
                algo = args.algo if codec else "plain"
                model.use_codec(codec, algo)
                row = {
                    "model": job.title, "tp": comm.size, "batch": batch, "codec": codec.name if codec else "none",
                    "algo": algo, "seed": args.seed, "prompt": args.prompt, "output": args.output,
                }  # fmt: skip
                check = agrees(model, comm, shortened(draw(args, batch, 0, model.decoder.vocabulary)))
                numbers = range(1, 1 + ceil_div(args.requests, batch))
                timed = [draw(args, batch, number, model.decoder.vocabulary) for number in numbers]
                rows.append(row | time_batches(model, comm, timed) | {"check": "ok" if check else "FAIL"})
                bar.update()
    return rows


class Hashed:
    """A model for cq.generate that keeps a digest of all its logits, and whether they were finite."""

    def __init__(self, model: cq.Transformer):
        self.model, self.digest, self.finite = model, hashlib.sha256(), True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.seen(self.model(*args, **options))

    def decode(self, *args: Any) -> Any:
        """One more token of each sequence; a graph where the model has one."""
        return self.seen(self.model.decode(*args))

    def seen(self, logits: Any) -> Any:
        """Keep the digest of these logits."""
        host = to_numpy(logits)
        self.digest.update(host.tobytes())
        self.finite &= is_finite(host)
        return logits


def agrees(model: cq.Transformer, comm: Communicator, requests: Requests) -> bool:
    """Whether a batch gives finite logits, the same on all ranks, and every request its tokens."""
    hashed = Hashed(model)
    counts = [0] * len(requests.wanted)
    for step in generate(hashed, requests):
        for sequence in step.tokens:
            counts[sequence] += 1
    digests = same_on_ranks(hashed.digest.digest(), comm)
    return hashed.finite and len(set(digests)) == 1 and counts == requests.wanted


def generate(model: Any, requests: Requests) -> Any:
    """The steps of a batch, whose requests end when they have what they want."""
    made = [0] * len(requests.wanted)

    def ends(step: cq.Step) -> dict[int, str]:
        for sequence in step.tokens:
            made[sequence] += 1
        return {s: "enough" for s in step.tokens if made[s] == requests.wanted[s]}

    return cq.generate(model, requests.prompts, max_tokens=max(requests.wanted), eos=(), ends=ends)


def time_batches(model: cq.Transformer, comm: Communicator, batches: list[Requests]) -> Row:
    """Figures of batches that follow each other."""
    first_ms: list[float] = []
    next_ms: list[float] = []
    total_s = 0.0
    comm.reset_sent()
    for requests in batches:
        comm.barrier()
        start = last = time.perf_counter()
        for step in generate(model, requests):
            now = time.perf_counter()
            (first_ms if last == start else next_ms).extend([(now - last) * 1e3] * len(step.tokens))
            last = now
        total_s += last - start
    new = sum(sum(requests.wanted) for requests in batches)
    sent = to_numpy(comm.all_gather(comm.xp.asarray([comm.sent_bytes])))
    return {
        "requests": len(first_ms),
        "prompt_tokens": sum(len(prompt) for requests in batches for prompt in requests.prompts),
        "new_tokens": new,
        "tokens_per_s": new / total_s,
        "ttft_p50_ms": percentile(first_ms, 50),
        "ttft_p99_ms": percentile(first_ms, 99),
        "tpot_p50_ms": percentile(next_ms, 50),
        "tpot_p99_ms": percentile(next_ms, 99),
        "sent_bytes": int(sent.max()) / new,
    }


def percentile(values: list[float], percent: int) -> float | None:
    """The least value that so many percent do not exceed (nearest rank); None of no values."""
    ordered = sorted(values)
    return ordered[ceil_div(len(ordered) * percent, 100) - 1] if ordered else None


# --- showing ---------------------------------------------------------------------------------------------------------


def plot(path: Path, rows: list[Row]) -> None:
    """Throughput, and the time between tokens with its p99, against the batch: a line for each tp and codec."""
    figure, axes = pyplot().subplots(1, 2, figsize=(9, 4), layout="constrained")
    for model, tp, codec in dict.fromkeys((row["model"], row["tp"], row["codec"]) for row in rows):
        mine = [row for row in rows if (row["model"], row["tp"], row["codec"]) == (model, tp, codec)]
        batch = [row["batch"] for row in mine]
        label = f"{model}, tp {tp}, {codec}"
        axes[0].plot(batch, [row["tokens_per_s"] for row in mine], "o-", label=label)
        middle, high = ([row[key] or 0.0 for row in mine] for key in ("tpot_p50_ms", "tpot_p99_ms"))
        axes[1].errorbar(batch, middle, [np.zeros(len(mine)), np.subtract(high, middle)], fmt="o-", capsize=3)
    for axis, title in zip(axes, ("new tokens a second", "ms between tokens: p50, and up to p99"), strict=True):
        axis.set(title=title, xlabel="requests in a batch", xscale="log", ylim=(0, None))
        ticks = sorted({row["batch"] for row in rows})
        axis.set_xticks(ticks, map(str, ticks))
        axis.minorticks_off()
    axes[0].legend(fontsize="x-small")
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(main())
