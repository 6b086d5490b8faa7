"""How much a quantized model differs from its float model: KL divergence and perplexity of cutpq's settings.

    python bench/quantize.py --model DIR --tokens tests/data/calib_tokens.npy       all settings: 4, 3 and 2 bits
    python bench/quantize.py --model DIR --tokens FILE.npy --settings w4g128-sym,w4g128-sym-fast
    python bench/quantize.py --model DIR --checkpoints DIR,...                       any quantized versions of it
    python bench/quantize.py --model DIR --tp 8 --codec mxfp4                        run with compressed all-reduces

DIR is a float model in a Hugging Face folder. Each setting is quantized by `cutpq quantize` in a process of its own,
for its time and memory, and run by load_model in float32; so is the float model. Windows of --eval tokens are scored
from an empty cache, the first token of each not. With --tp the settings run over so many ranks, which are threads, and
--codec is that of their all-reduces (twoshot); the float model always runs alone.

bits        of a weight, scales and zero points included
kl          mean of KL(float || quantized) in nats over the scored tokens: what settings are ranked by
kl_others   the same over --others windows that follow them, for settings that were chosen on the first ones
perplexity  exp of the mean of -ln p(token); equal settings scatter by 0.03 on the small Llama that this was made with
cpu_s, rss  of the process that quantized
check       ok: the checkpoint is read back and proven, logits are finite, and KL is at most what `TARGETS` asks for
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness.blas_single  # noqa: F401  before NumPy
import numpy as np
from harness.flags import at_least, figure_file
from harness.report import Column, Table, header, progress, pyplot, write_json

import cutpq as cq
from cutpq.checkpoint.folder import open_checkpoint
from cutpq.ranks.alone import SelfCommunicator

DATA = Path(__file__).resolve().parent.parent / "tests" / "data"

SETTINGS: dict[str, list[str]] = {
    "w4g128-sym": ["--bits", "4"],
    "w4g32-asym": ["--bits", "4", "--group-size", "32", "--asym"],
    "w3g128-sym": ["--bits", "3"],
    "w2g32-asym": ["--bits", "2", "--group-size", "32", "--asym"],
}
for plain in ("w4g128-sym", "w3g128-sym", "w2g32-asym"):
    for order in ("static", "act", "group-aware", "none"):
        SETTINGS[f"{plain}-fast-{order}"] = [*SETTINGS[plain], "--fast", "--order", order]

# Largest KL on the small Llama with its 128 calibration windows, over its first 24 evaluation windows of 512.
TARGETS = {"w4g128-sym": 0.0028, "w4g32-asym": 0.0017, "w3g128-sym": 0.0110, "w2g32-asym": 0.0380}

# GPTQModel 7.7.0 on the same float model, calibration tokens and first 24 windows, not run here: bits of a weight, KL
# with its default (group-aware order), and KL of its best setting.
QUOTED = ((4.125, 0.00417, 0.00381), (3.125, 0.0204, 0.0185), (2.5625, 0.0616, 0.0573))

TABLE = Table(
    (
        Column("setting", "setting", 28),
        Column("bits", "bits", 6, ".3f"),
        Column("kl", "kl", 9, ".5f"),
        Column("perplexity", "perplexity", 10, ".4f"),
        Column("kl_others", "kl_others", 9, ".5f"),
        Column("cpu_s", "cpu_s", 7, ".1f"),
        Column("rss_mb", "rss_mb", 7, ".0f"),
        Column("check", "check", 5),
    )
)

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    comm = SelfCommunicator()
    windows = evaluation_windows(args)
    print("\n".join(header(comm)))
    print(
        f"# {args.model}: {args.windows} windows of {args.window} tokens from window {args.first} on, then "
        f"{args.others} others; float32; calibration {args.tokens}"
    )
    plain = logits(args.model, windows, comm)
    rows = [score("float", args.model, plain, plain, windows, args.windows)]
    print("\n".join([TABLE.heading(), TABLE.line(rows[0])]), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in args.checkpoints or args.settings:
            cost: Row = {}
            path = Path(name)
            if not args.checkpoints:
                path = Path(folder) / name
                cost = quantize(args, SETTINGS[name], path)
            found = cq.run_threads(args.tp, lambda rank, path=path: logits(path, windows, rank, args.codec))[0]
            row = score(path.name, path, found, plain, windows, args.windows) | cost
            if args.targets and row["kl"] > TARGETS.get(path.name, np.inf):
                row["check"] = "FAIL"
            rows.append(row)
            print(TABLE.line(row), flush=True)
    if args.json:
        write_json(args.json, rows)
    if args.plot:
        plot(args.plot, rows, args)
    return 1 if any(row["check"] == "FAIL" for row in rows) else 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="the float model")
    parser.add_argument(
        "--tokens", type=Path, default=DATA / "calib_tokens.npy", metavar="FILE.npy", help="calibration"
    )
    eval_tokens = DATA / "tiny-llama" / "eval_tokens.npy"
    parser.add_argument("--eval", type=Path, default=eval_tokens, metavar="FILE.npy", help="a row of tokens to score")
    parser.add_argument("--window", type=int, default=512, metavar="N", help="tokens of a window (512)")
    parser.add_argument("--windows", type=int, default=24, metavar="N", help="how many (24)")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="the first of them (0)")
    parser.add_argument("--others", type=int, default=0, metavar="N", help="more after them, for kl_others (0)")
    parser.add_argument("--settings", type=settings, default=list(SETTINGS), metavar="S,...", help="default: all")
    parser.add_argument(
        "--checkpoints", type=lambda text: text.split(","), metavar="DIR,...", help="instead of settings"
    )
    parser.add_argument("--tp", type=at_least(1), default=1, metavar="N", help="ranks of the settings' runs (1)")
    parser.add_argument("--codec", type=cq.codec, metavar="C", help="of their all-reduces (none)")
    parser.add_argument("--targets", action="store_true", help="fail where KL is above that of the small Llama")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write one object a row")
    parser.add_argument("--plot", type=figure_file, metavar="FILE", help="KL against bits, GPTQModel's quoted beside")
    return parser.parse_args(argv)


def settings(text: str) -> list[str]:
    """ "w4g128-sym,..." -> names."""
    names = text.split(",")
    for name in names:
        if name not in SETTINGS:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(SETTINGS)}")
    return names


def evaluation_windows(args: argparse.Namespace) -> np.ndarray:
    """(windows + others, window) integers."""
    tokens = np.load(args.eval)
    count = args.windows + args.others
    start, stop = args.first * args.window, (args.first + count) * args.window
    if tokens.ndim != 1 or len(tokens) < stop:
        raise SystemExit(f"{args.eval}: expected a row of {stop} tokens or more, found shape {tokens.shape}")
    return tokens[start:stop].astype(np.int64).reshape(count, args.window)


# The command, and then the most memory that its process had resident, in kB. getrusage would not do: what it tells of
# ended processes is the largest of them all, and each counts the one that started it.
_QUANTIZE = """
import re, sys
from pathlib import Path
from cutpq.cli.main import main
status = main(sys.argv[1:])
print(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
sys.exit(status)
"""


def quantize(args: argparse.Namespace, flags: list[str], folder: Path) -> Row:
    """CPU time and peak memory of the process that quantizes."""
    command = [sys.executable, "-c", _QUANTIZE, "quantize", str(args.model), str(folder), "--tokens", str(args.tokens)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [*command, *flags], check=True, stdout=subprocess.PIPE, text=True, env=os.environ | {"CUTPQ_COMM": "self"}
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"cpu_s": cpu_s, "rss_mb": int(done.stdout.split()[-1]) / 1024}


def logits(folder: Path, windows: np.ndarray, comm: cq.Communicator, codec: cq.Codec | None = None) -> list[np.ndarray]:
    """The logits of each window, (window, vocabulary)."""
    model = cq.load_model(folder, comm, codec, algo="twoshot" if codec else "auto", dtype="float32")
    cache = model.new_cache(1, windows.shape[1])
    found = []
    with progress(len(windows), folder.name, comm) as bar:
        for window in windows:
            cache.clear()
            found.append(model([window], cache).astype(np.float32))
            bar.update()
    return found


def score(
    name: str, folder: Path, found: list[np.ndarray], plain: list[np.ndarray], windows: np.ndarray, first: int
) -> Row:
    """A row of the table; the windows after the first ones are the others."""
    kl, nll = np.zeros(len(windows)), np.zeros(len(windows))
    for i, (q, p, window) in enumerate(zip(found, plain, windows, strict=True)):
        q, p = log_softmax(q[:-1]), log_softmax(p[:-1])
        kl[i] = (np.exp(p) * (p - q)).sum(axis=1).mean()
        nll[i] = -q[np.arange(len(q)), window[1:]].mean()
    row = {"setting": name, "bits": bits_per_weight(open_checkpoint(folder)), "kl": float(kl[:first].mean())}
    row |= {"perplexity": float(np.exp(nll[:first].mean()))}
    if len(windows) > first:
        row["kl_others"] = float(kl[first:].mean())
    return row | {"check": "ok" if np.isfinite(kl).all() else "FAIL"}


def bits_per_weight(ckpt: cq.Checkpoint) -> float:
    """Mean over the quantized weights, with float16 scales, and zero points where these are not all the middle."""
    used = weights = 0.0
    for name in ckpt.weights():
        K, N = ckpt.shape(name)
        facts = ckpt.inspect(name)
        weights += K * N
        used += K * N * facts.bits + facts.G * N * (16 + (0 if facts.sym else facts.bits))
    return used / weights if weights else 16.0


def plot(path: Path, rows: list[Row], args: argparse.Namespace) -> None:
    """KL against bits per weight: these rows, and what is quoted of GPTQModel for the small Llama."""
    figure, axis = pyplot().subplots(figsize=(7, 4.5), layout="constrained")
    for fast, label, marker in ((False, "cutpq", "o"), (True, "cutpq --fast", "x")):
        points = sorted((r["bits"], r["kl"]) for r in rows if r["kl"] and ("fast" in r["setting"]) == fast)
        if points:
            axis.plot(*zip(*points, strict=True), marker, label=label)
    bits, default, best = zip(*QUOTED, strict=True)
    axis.plot(bits, default, "--", label="GPTQModel 7.7.0, default (quoted)", color="grey")
    axis.plot(bits, best, ":", label="GPTQModel 7.7.0, best of 6 settings (quoted)", color="grey")
    axis.set_yscale("log")
    axis.set_xlabel("bits per weight, scales and zero points included")
    axis.set_ylabel("mean KL divergence from the float model, nats")
    axis.set_title(f"{args.windows} windows of {args.window}, calibration {args.tokens.name}")
    axis.legend(fontsize="small")
    figure.savefig(path)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """log p along the last axis, in float64."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


if __name__ == "__main__":
    sys.exit(main())
