"""Does compression hurt? Perplexity of a real checkpoint, with and without a codec in its all_reduces.

    python bench/perplexity.py                                        the carried model, 2 ranks, a few codecs
    python bench/perplexity.py --tp 1,2,4,8 --scheme all --codec none
    mpirun -n 8 python bench/perplexity.py --checkpoint DIR --tokens FILE.npy --codec mxfp4,e2m2-b32

Ranks are threads of this process, or processes where mpirun started several. The tokens are cut into consecutive
windows; each is scored from an empty cache, its first token not. A row is one codec at one tp and scheme:

perplexity  exp of the mean of -ln p(token)
diff        perplexity minus that of the run without a codec
kl          mean of KL(p || q) in nats over the scored tokens: p without the codec, q with it
bits        on the wire for a value; ratio is 16 / bits
check       ok: all ranks hold the same logits, bit for bit, they are finite, and where the perplexity is known (the
            carried model, float32, 24 windows of 512, no codec: 24.1865 by another library) it is that to four digits
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness.blas_single  # noqa: F401  before NumPy
import numpy as np
from harness.flags import CARRIED, at_least, codecs, figure_file, positive_numbers
from harness.report import Column, Table, header, progress, pyplot, write_json

import cutpq as cq
from cutpq.array import Array, to_numpy
from cutpq.ranks.alone import SelfCommunicator
from cutpq.ranks.communicator import Communicator
from cutpq.weights.shard import even_shares

CODECS = "mxint8,e2m2-b32,int4-b8,mxfp4,e1m1"

# (dtype, window, windows) -> perplexity that came with the carried model: float32 arithmetic on weights that GPTQModel
# 7.6.0 had dequantized.
KNOWN = {("float32", 512, 24): 24.1865, ("float32", 512, 128): 32.6527}

TABLE = Table(
    (
        Column("tp", "tp", 2),
        Column("scheme", "scheme", 10),
        Column("codec", "codec", 16),
        Column("algo", "algo", 12),
        Column("bits", "bits", 6, ".3f"),
        Column("ratio", "ratio", 5, ".2f"),
        Column("perplexity", "perplexity", 10, ".4f"),
        Column("difference", "diff", 8, "+.4f"),
        Column("kl", "kl", 9, ".2e"),
        Column("check", "check", 5),
    )
)

# Numbers that the logits of the windows which go through the model together may have, or else a single window: two of
# 512 tokens and 1024 words. Calls of Python and waits for other ranks are then half as many; more brings no more.
_LOGITS = 1 << 20

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, write what was asked for; 1 where a check fails, 2 for input that cannot be used."""
    args = parse(argv)
    comm = cq.init()
    try:
        tps = ranks(args, comm)
        tokens = load_tokens(args)
        rows = [row for tp in tps for scheme in args.scheme for row in measure(args, tokens, comm, tp, scheme)]
    except (cq.CheckpointError, ValueError, OSError) as error:
        if comm.rank == 0:
            print(f"perplexity.py: {error}", file=sys.stderr)
        return 2
    if comm.rank == 0:
        describe(args, comm, tps)
        print("\n".join([TABLE.heading(), *(TABLE.line(row) for row in rows)]))
        print("\n".join(f"# FAIL {row['codec']} tp={row['tp']}: {row['why']}" for row in rows if row["why"]), end="")
        if args.json:
            write_json(args.json, [{k: v for k, v in row.items() if k != "why"} for row in rows])
        if args.plot:
            plot(args.plot, rows)
    failed = comm.bcast(any(row["check"] == "FAIL" for row in rows))
    return 1 if failed else 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Flags, checked for what needs no file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", default=CARRIED, help="default: the carried model")
    parser.add_argument("--tokens", type=Path, metavar="FILE.npy", help="default: eval_tokens.npy of the checkpoint")
    parser.add_argument("--window", type=at_least(1), default=512, metavar="N", help="tokens of a window (512)")
    parser.add_argument("--windows", type=at_least(1), default=24, metavar="N", help="how many (24)")
    parser.add_argument("--tp", type=positive_numbers, metavar="N,...", help="numbers of ranks, as threads (2)")
    parser.add_argument("--scheme", type=schemes, default=["auto"], metavar="S,...", help="of cutpq.SCHEMES, or all")
    parser.add_argument("--codec", type=codecs, default=codecs(CODECS), metavar="C,...", help=f"default {CODECS}")
    algos = ("oneshot", "twoshot", "hierarchical")
    parser.add_argument("--algo", choices=algos, default="twoshot", help="of the codecs (twoshot)")
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float32", help="(float32)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write one object a row")
    parser.add_argument("--plot", type=figure_file, metavar="FILE", help="KL against bits, the Pareto front marked")
    args = parser.parse_args(argv)
    if args.window < 2:
        parser.error("--window must be at least 2: the first token is not scored")
    return args


def schemes(text: str) -> list[str]:
    """ "local,naive", or all of them."""
    wanted = list(cq.SCHEMES) if text == "all" else text.split(",")
    for name in wanted:
        if name not in (*cq.SCHEMES, "auto"):
            raise argparse.ArgumentTypeError(f"{name!r} is not one of all, auto, {', '.join(cq.SCHEMES)}")
    return wanted


def ranks(args: argparse.Namespace, comm: Communicator) -> list[int]:
    """Which tp to run: what was asked for as threads, or the processes that there are."""
    if comm.size == 1:
        return list(args.tp or (2,))
    if args.tp not in (None, (comm.size,)):
        raise ValueError(f"{comm.size} processes were started, so --tp is {comm.size}")
    return [comm.size]


def load_tokens(args: argparse.Namespace) -> np.ndarray:
    """(windows, window) integers. Raises ValueError for a file that has too few or other things."""
    path = args.tokens or args.checkpoint / "eval_tokens.npy"
    tokens = np.load(path, mmap_mode="r")
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise ValueError(f"{path}: expected a row of integers, found {tokens.dtype} of shape {tokens.shape}")
    if len(tokens) < args.windows * args.window:
        raise ValueError(
            f"{path}: expected {args.windows} windows of {args.window} tokens, found {len(tokens)} tokens: "
            f"at most --windows {len(tokens) // args.window}"
        )
    return np.asarray(tokens[: args.windows * args.window], np.int64).reshape(args.windows, args.window)


# --- measuring -----------------------------------------------------------------------------------------------------


def measure(args: argparse.Namespace, tokens: np.ndarray, comm: Communicator, tp: int, scheme: str) -> list[Row]:
    """Rows at one tp and scheme, the run without a codec first. Complete on rank 0."""
    if comm.size == tp:
        return run(comm, args, tokens, scheme)
    xp = comm.xp if isinstance(comm, SelfCommunicator) else np
    return cq.run_threads(tp, run, args, tokens, scheme, xp=xp)[0]


def run(comm: Communicator, args: argparse.Namespace, tokens: np.ndarray, scheme: str) -> list[Row]:
    """One rank. A few windows at a time, each codec in turn, so that the logits of these windows alone are kept.

    All ranks hold the logits of every position; each scores its share of the positions.
    """
    model = cq.load_model(args.checkpoint, comm, scheme=scheme, dtype=args.dtype)
    tallies = [Tally(codec) for codec in (None, *(args.codec if comm.size > 1 else []))]
    mine = share(args.window, comm)
    together = max(1, _LOGITS // (args.window * model.decoder.vocabulary))
    with progress(len(tokens) * len(tallies), f"tp={comm.size} {scheme}", comm) as bar:
        for start in range(0, len(tokens), together):
            windows = tokens[start : start + together]
            cache = model.new_cache(*windows.shape)
            plains: list[Plain] = []
            for tally in tallies:
                cache.clear()
                model.use_codec(tally.codec, args.algo if tally.codec else "plain")
                logits = model(windows, cache)
                tally.same &= same_part(logits, comm)
                of_windows = to_numpy(logits).reshape(*windows.shape, -1)
                log_qs = [log_softmax(positions[mine]) for positions in of_windows]
                plains = plains or [Plain(log_q) for log_q in log_qs]
                for log_q, plain, window in zip(log_qs, plains, windows, strict=True):
                    tally.add(log_q, plain, window[1:][mine])
                bar.update(len(windows))
    for tally in tallies:
        tally.sum_over_ranks(comm)
    common = {"tp": comm.size, "scheme": scheme, "dtype": args.dtype, "window": args.window, "windows": args.windows}
    return [tally.row(tallies[0], args) | common for tally in tallies] if comm.rank == 0 else []


def share(window: int, comm: Communicator) -> slice:
    """The positions of a window that this rank scores: those whose next token is in the window, in equal parts."""
    return slice(comm.rank * (window - 1) // comm.size, (comm.rank + 1) * (window - 1) // comm.size)


def same_part(logits: Array, comm: Communicator) -> bool:
    """Whether all ranks hold the same bits in this rank's part of the logits, an even share of the numbers."""
    words = logits.reshape(-1).view(f"u{logits.itemsize}")
    first, *others = comm.terms(words, even_shares(words.size, comm.size))
    return all(bool((first == other).all()) for other in others)


class Plain:
    """What a window's run without a codec gave: log p and p, (positions, vocabulary) float64."""

    def __init__(self, log_p: np.ndarray):
        self.log_p, self.p = log_p, np.exp(log_p)


class Tally:
    """Sums over the positions that this rank has scored with one codec; in the end those of all ranks."""

    def __init__(self, codec: cq.Codec | None):
        self.codec = codec
        self.nll = self.kl = 0.0
        self.scored = 0
        self.same = True

    def add(self, log_q: np.ndarray, plain: Plain, following: np.ndarray) -> None:
        """log q of some positions (n, vocabulary), the same positions' p, and the tokens (n,) that follow them."""
        self.nll -= float(log_q[np.arange(len(following)), following].sum())
        if log_q is not plain.log_p:
            self.kl += float(np.einsum("nv,nv", plain.p, plain.log_p - log_q))
        self.scored += len(following)

    def sum_over_ranks(self, comm: Communicator) -> None:
        """Every rank gets the sums over all positions, and whether every part of the logits was the same."""
        own = np.array([self.nll, self.kl, self.scored, not self.same], np.float64)
        every = comm.all_gather(comm.xp.asarray(own.view(np.uint8)))  # bytes, which all backends carry
        nll, kl, scored, differing = to_numpy(every).view(np.float64).sum(axis=0)
        self.nll, self.kl, self.scored, self.same = float(nll), float(kl), int(scored), differing == 0

    def row(self, plain: Tally, args: argparse.Namespace) -> Row:
        """The figures, and what is wrong with them."""
        perplexity = perplexity_of(self)
        why = [] if self.same else ["ranks hold different logits"]
        if not np.isfinite(perplexity):
            why.append("logits are not finite")
        known = KNOWN.get((args.dtype, args.window, args.windows))
        carried = self.codec is None and args.checkpoint == CARRIED and args.tokens is None
        if carried and known is not None and round(perplexity, 4) != known:
            why.append(f"perplexity is {perplexity:.4f}, must be {known}")
        return {
            "codec": "none" if self.codec is None else self.codec.name,
            "algo": "plain" if self.codec is None else args.algo,
            "bits": None if self.codec is None else self.codec.bits,
            "ratio": None if self.codec is None else round(self.codec.ratio, 4),
            "perplexity": perplexity,
            "difference": perplexity - perplexity_of(plain),
            "kl": self.kl / self.scored,
            "checkpoint": args.checkpoint.name,
            "check": "FAIL" if why else "ok",
            "why": "; ".join(why),
        }


def perplexity_of(tally: Tally) -> float:
    """exp of the mean negative log-likelihood."""
    return float(np.exp(tally.nll / tally.scored))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """log p along the last axis, in float64; a few rows at a time, which stay in the cache."""
    log_p = np.empty(logits.shape, np.float64)
    for start in range(0, len(logits), 64):
        rows = log_p[start : start + 64]
        rows[...] = logits[start : start + 64]
        rows -= rows.max(axis=1, keepdims=True)
        rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return log_p


# --- showing -------------------------------------------------------------------------------------------------------


def describe(args: argparse.Namespace, comm: Communicator, tps: list[int]) -> None:
    """Header lines."""
    print("\n".join(header(comm)))
    if comm.size == 1:
        print(f"# ranks of tp {', '.join(map(str, tps))} are threads of this process")
    print(f"# {args.checkpoint.name}: {args.windows} windows of {args.window} tokens, {args.dtype} activations")


def pareto(rows: list[Row]) -> list[Row]:
    """Of the rows with a codec: those for which no other has fewer bits and at most the same KL, by bits."""
    front: list[Row] = []
    for row in sorted((r for r in rows if r["bits"] is not None), key=lambda r: (r["bits"], r["kl"])):
        if not front or row["kl"] < front[-1]["kl"]:
            front.append(row)
    return front


def plot(path: Path, rows: list[Row]) -> None:
    """KL against bits per value: a series for each tp and scheme, its Pareto front a line."""
    figure, _ = draw(rows)
    figure.savefig(path)


def draw(rows: list[Row]) -> tuple[Any, list[Any]]:
    """The figure of `plot`, and its labels: the codecs of the first series, at places where nothing else is."""
    figure, axis = pyplot().subplots(figsize=(7, 4.5), layout="constrained")
    every = dict.fromkeys((row["tp"], row["scheme"]) for row in rows if row["bits"] is not None)
    for tp, scheme in every:
        of_series = [r for r in rows if (r["tp"], r["scheme"]) == (tp, scheme) and r["bits"] is not None]
        front = pareto(of_series)
        (line,) = axis.plot(*_points(front), "-", label=f"tp={tp} {scheme}, Pareto front")
        axis.plot(*_points(front), "o", color=line.get_color())
        axis.plot(*_points([r for r in of_series if r not in front]), "x", color=line.get_color())
    axis.margins(x=0.1)
    axis.set_yscale("log")
    axis.set_xlabel("bits per value on the wire")
    axis.set_ylabel("mean KL divergence, nats")
    axis.set_title(f"{rows[0]['checkpoint']}: {rows[0]['windows']} windows of {rows[0]['window']}")
    axis.legend(fontsize="small")
    first = next(iter(every), None)
    labelled = [r for r in rows if (r["tp"], r["scheme"]) == first and r["bits"] is not None]
    return figure, place_labels(figure, axis, labelled, [r for r in rows if r["bits"] is not None])


# Where a label may stand around its point, in points and as horizontal alignment: the nearest places first.
_PLACES = [
    (dx, dy, "left" if dx > 0 else "right")
    for distance in (5, 9, 14, 20, 28, 38)
    for dy in (0, 1, -1)
    for dx in (1, -1)
    for dx, dy in [(dx * 5, dy * distance - 3)]
]


def place_labels(figure: Any, axis: Any, labelled: list[Row], points: list[Row]) -> list[Any]:
    """Write the codec's name beside each labelled point, at the first place that is free of labels and points."""
    figure.draw_without_rendering()  # fixes the scales that places are measured in
    boxes = [_box_of_point(axis, row) for row in points]
    legend = axis.get_legend()
    boxes.append(legend.get_window_extent())
    labels = []
    for row in labelled:
        label = axis.annotate(
            row["codec"],
            (row["bits"], row["kl"]),
            (0, 0),
            textcoords="offset points",
            fontsize="x-small",
        )
        for dx, dy, side in _PLACES:
            label.set_position((dx, dy))
            label.set_horizontalalignment(side)
            box = label.get_window_extent()
            if axis.bbox.containsx(box.x0) and axis.bbox.containsx(box.x1) and not box.count_overlaps(boxes):
                break
        boxes.append(label.get_window_extent())
        labels.append(label)
        if abs(dy) > 10:  # so far from its point that a line must join them
            line = {"arrowstyle": "-", "linewidth": 0.4, "color": "gray"}
            axis.annotate("", (row["bits"], row["kl"]), (dx, dy + 3), textcoords="offset points", arrowprops=line)
    return labels


def _box_of_point(axis: Any, row: Row) -> Any:
    """The square of a marker, in pixels."""
    from matplotlib.transforms import Bbox

    x, y = axis.transData.transform((row["bits"], row["kl"]))
    return Bbox([[x - 4, y - 4], [x + 4, y + 4]])


def _points(rows: list[Row]) -> tuple[list[float], list[float]]:
    return [row["bits"] for row in rows], [row["kl"] for row in rows]


if __name__ == "__main__":
    sys.exit(main())
