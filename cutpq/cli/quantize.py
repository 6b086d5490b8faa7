"""`cutpq quantize`: the command's flags, its progress, and what it says at the end."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..checkpoint.errors import CheckpointError
from ..model.text import NoTokenizerError, Tokenizer
from ..quantization.job import FORMATS, QuantizationError
from ..quantization.order import ORDERS
from ..quantization.quantize import Quantized, quantize
from ..quantization.scales import SCALES
from ..ranks.agree import on_first
from ..ranks.communicator import Communicator
from .start import start

ABOUT = """Quantize the linear layers of a float model by GPTQ, from calibration text, without PyTorch.

The defaults are the most accurate settings known here. The order `static` takes rows by activation, as act-order does,
but keeps groups contiguous: nothing has to be reordered at run time, by any engine, on any number of ranks. SRC is
never written to. DST appears when all is written, read back and proven; until then it is DST.unfinished, and the same
command goes on from there after it was ended, with the same result to the byte.

  mpirun -n 8 cutpq quantize SRC DST --tokens calib.npy       sequences and columns over 8 ranks: the same bytes"""

# The most accurate settings known, and plain GPTQ, with less than half of the work.
BEST = {"asymmetric_target": True, "scale": "search", "sweeps": 4}
FAST = {"asymmetric_target": False, "scale": "minmax", "sweeps": 0}


def add_parser(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    raw = argparse.RawDescriptionHelpFormatter
    command = commands.add_parser("quantize", help="float weights to GPTQ", description=ABOUT, formatter_class=raw)
    command.add_argument("src", metavar="SRC", help="a Hugging Face folder with float weights")
    command.add_argument("dst", metavar="DST", help="a folder that does not exist, or is empty")
    text = command.add_mutually_exclusive_group(required=True)
    text.add_argument("--tokens", type=Path, metavar="FILE.npy", help="integers (sequences, length), or a row of them")
    text.add_argument("--text", type=Path, metavar="FILE", help="text, for SRC's tokenizer.json; needs tokenizers")
    command.add_argument(
        "--window", type=int, default=512, metavar="N", help="length of sequences cut from a row (512)"
    )
    command.add_argument("--sequences", type=int, metavar="N", help="take the first N sequences only")
    command.add_argument("--bits", type=int, choices=(2, 3, 4, 8), default=4, help="of a code (4)")
    command.add_argument(
        "--group-size", type=int, default=128, metavar="N", help="rows of a scale, or -1 for all (128)"
    )
    zeros = command.add_mutually_exclusive_group()
    zeros.add_argument(
        "--sym", dest="sym", action="store_true", default=True, help="zero point in the middle (default)"
    )
    zeros.add_argument("--asym", dest="sym", action="store_false", help="a zero point for every group and column")
    command.add_argument("--order", choices=ORDERS, default="static", help="in which rows are taken (static)")
    command.add_argument("--damp", type=float, default=0.01, metavar="X", help="of the Hessian's mean diagonal (0.01)")
    command.add_argument("--scale", choices=SCALES, default=None, help="how scales are chosen (search)")
    command.add_argument("--sweeps", type=int, default=None, metavar="N", help="of coordinate descent (4)")
    command.add_argument(
        "--no-asymmetric-target", dest="asymmetric_target", action="store_false", default=None,
        help="do not make up for the errors of the layers before",
    )  # fmt: skip
    command.add_argument("--fast", action="store_true", help="plain GPTQ: no target, no search, no sweeps")
    command.add_argument("--modules", metavar="REGEX", help="only modules whose names it finds; others stay float")
    command.add_argument("--format", choices=FORMATS, help="gptq where symmetric, else gptq_v2")
    command.add_argument("--memory", type=float, metavar="GB", help="for activations of a rank, else files (a quarter)")
    command.add_argument("--json", action="store_true", help="one JSON object: settings, losses, notes, time")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """What the command does; its exit status."""
    with redirect_stdout(sys.stderr if args.json else sys.stdout):  # it says which backend it chose
        comm = start()
    try:
        _run(args, comm)
    except (CheckpointError, QuantizationError, OSError):
        if comm.rank == 0:  # all ranks raise the same, and one says it
            raise
        return 1
    return 0


def _run(args: argparse.Namespace, comm: Communicator) -> None:
    settings = {key: getattr(args, key) for key in ("bits", "group_size", "sym", "order", "damp", "modules", "format")}
    given = {key: getattr(args, key) for key in FAST if getattr(args, key) is not None}
    settings |= (FAST if args.fast else BEST) | given
    tokens = on_first(comm, lambda: read_tokens(args))
    hidden = comm.rank != 0 or not sys.stderr.isatty()
    with tqdm(desc="quantizing", unit="module", disable=hidden, leave=False) as bar:

        def progress(name: str, loss: float, done: int, total: int) -> None:
            bar.total = total
            bar.set_postfix_str(f"{name}, loss {loss:.2e}", refresh=False)
            bar.update(done - bar.n)

        done = quantize(args.src, args.dst, tokens, comm, memory_gb=args.memory, progress=progress, **settings)
    if comm.rank == 0:
        _say(args, done, tokens.shape, settings)


def read_tokens(args: argparse.Namespace) -> np.ndarray:
    """(sequences, length) integers from --tokens or --text; a row of them is cut into windows."""
    if args.text is not None:
        tokens = _tokenize(args.src, args.text)
    else:
        try:
            tokens = np.load(file=args.tokens)
        except (OSError, ValueError) as e:
            raise QuantizationError(f"{args.tokens}: expected an array written by numpy.save ({e})") from None
    if tokens.ndim == 1:
        if args.window < 2 or len(tokens) < args.window:
            raise QuantizationError(
                f"{args.tokens or args.text}: {len(tokens)} tokens cannot be cut into windows of --window {args.window}"
            )
        tokens = tokens[: len(tokens) // args.window * args.window].reshape(-1, args.window)
    return tokens[: args.sequences]


def _tokenize(folder: str, text: Path) -> np.ndarray:
    """The tokens of a text file by a model's tokenizer.json, (n,) int64."""
    try:
        tokenizer = Tokenizer(folder)
    except NoTokenizerError as e:
        raise QuantizationError(f"--text: {e}; or give --tokens") from None
    try:
        words = text.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise QuantizationError(f"--text {text}: not UTF-8 text, at byte {e.start}") from None
    return np.array(tokenizer.encode(words), np.int64)


def _say(args: argparse.Namespace, done: Quantized, shape: tuple[int, ...], settings: dict[str, Any]) -> None:
    if args.json:
        print(json.dumps({"src": args.src, "dst": args.dst, "settings": settings, **asdict(done)}, indent=2))
        return
    for note in done.notes:
        print(f"note: {note}", file=sys.stderr)
    for name, damp in done.damps.items():
        what = "was rounded to the nearest: no damping sufficed" if damp is None else f"needed damping {damp:.2f}"
        print(f"note: {name} {what}", file=sys.stderr)
    worst = max(done.losses, key=lambda name: done.losses[name])
    again = f", {done.resumed} layers by an earlier run" if done.resumed else ""
    print(f"{args.dst}: {len(done.losses)} modules from {shape[0]} sequences of {shape[1]} tokens{again}")
    print(f"largest relative squared error of an output: {done.losses[worst]:.2e}, of {worst}")
    print(f"proved, bit for bit: every module reads back as it was solved; {done.seconds:.1f} s")
