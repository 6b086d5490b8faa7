"""cutpq generate: prompts in, text out as it is made, and how long it took.

Rank 0 reads the prompts, draws the tokens and prints; the other ranks compute with it and are silent.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any, TextIO, TypeVar, cast

from ..checkpoint.errors import CheckpointError, CheckpointWarning
from ..model.generate import PromptError, generate
from ..model.sampler import Sampler
from ..model.text import NoTokenizerError
from ..model.transformer import DTYPES, load_model
from ..ranks.communicator import Communicator
from .generate_figures import Clock
from .generate_texts import Texts
from .start import start

ABOUT = """Continue one or more prompts. They run as one batch, which a text leaves when it ends.

With several ranks: mpirun -n 4 cutpq generate DIR --prompt "...". Text goes to stdout, all else to stderr. Where the
folder has no tokenizer.json, or the package tokenizers is missing, prompts and output are token ids: --prompt "0 17 5".
Ctrl-C ends all texts where they are; what was made is printed, and the exit status is 130."""


def add_parser(commands: Any) -> None:
    """Add `generate` to the subcommands of `cutpq`."""
    command = commands.add_parser(
        "generate", help="text out", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_argument("dir", metavar="DIR", help="a Hugging Face folder")
    command.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="may be given several times")
    command.add_argument(
        "--prompt-file", action="append", default=[], metavar="FILE", help="one prompt, the whole file; - is stdin"
    )
    command.add_argument("--chat", action="store_true", help="each prompt is a message, by the model's chat template")
    command.add_argument("--max-tokens", type=int, default=64, metavar="N", help="new tokens of a text (default 64)")
    command.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0: the likeliest token (default)")
    command.add_argument("--top-p", type=float, default=1.0, metavar="P", help="likeliest tokens of this probability")
    command.add_argument("--top-k", type=int, default=0, metavar="K", help="so many of the likeliest tokens")
    command.add_argument(
        "--repetition-penalty", type=float, default=1.0, metavar="R", help="above 1: fewer repetitions"
    )
    command.add_argument("--seed", type=int, default=0, metavar="S", help="of the random numbers (default 0)")
    command.add_argument("--stop", action="append", default=[], metavar="STR", help="a text ends before STR")
    command.add_argument("--codec", metavar="NAME", help="of the all-reduces: mxfp4, int4-b8, ... (default: none)")
    command.add_argument("--dtype", choices=DTYPES, help="of the activations (default: the model's)")
    command.add_argument("--json", action="store_true", help="one JSON object at the end: tokens, texts and figures")
    command.add_argument("--verbose", action="store_true", help="a table of the phases at the end")
    command.set_defaults(run=run)


# One Ctrl-C may reach a rank twice within this time: from the terminal, and passed on by mpirun.
TWICE_S = 1.0

T = TypeVar("T")
ERRORS = (CheckpointError, NoTokenizerError, ValueError)  # what a user can cause: one line each


def run(args: argparse.Namespace) -> int:
    """The exit status: 0, 1 for an error, 130 for Ctrl-C."""
    out = sys.stdout  # for texts alone: what the library prints about backends and codecs goes to stderr
    with contextlib.redirect_stdout(sys.stderr):
        return _run(args, out)


def _run(args: argparse.Namespace, out: TextIO) -> int:
    comm = start()
    if comm.rank:  # rank 0 has the same, and tells them
        warnings.simplefilter("ignore", CheckpointWarning)
    clock = Clock(comm)
    interrupted = Interrupt(comm)
    try:
        sampler = Sampler(args.temperature, args.top_k, args.top_p, args.repetition_penalty, args.seed)
        texts = _on_rank_0(comm, lambda: Texts(args, out))
        prompts = comm.bcast(texts.prompts if texts else None)
        model = _on_every_rank(comm, lambda: load_model(args.dir, comm, args.codec, dtype=args.dtype))
        clock.phase("load", 0)
        ends = (lambda step: texts.add(step, bool(interrupted))) if texts else None
        steps = generate(model, prompts, max_tokens=args.max_tokens, sampler=sampler, ends=ends)
    except ERRORS as error:
        if comm.rank == 0:
            said = f"prompt {error.index + 1} {error.what}" if isinstance(error, PromptError) else error
            print(f"cutpq: error: {said}", file=sys.stderr)
        return 1
    reasons: set[str] = set()
    with interrupted:
        for step in steps:
            clock.phase("decode" if "prefill" in clock.phases else "prefill", len(step.tokens))
            reasons |= set(step.finished.values())
            if texts:
                texts.show(step)
            clock.phase("text", 0)
    figures = clock.figures(sum(map(len, prompts)))
    if texts:
        texts.close(figures)
        if args.verbose:
            clock.print_phases()
    return 130 if "interrupted" in reasons else 0


def _on_rank_0(comm: Communicator, make: Callable[[], T]) -> T | None:
    """What make() gives on rank 0, None on the others; what it raises there is raised on all ranks."""
    made, problem = _attempt(make) if comm.rank == 0 else (None, "")
    if problem := comm.bcast(problem):
        raise ValueError(problem)
    return made


def _on_every_rank(comm: Communicator, make: Callable[[], T]) -> T:
    """What make() gives; what it raises on one rank, and be it alone, is raised on all."""
    made, problem = _attempt(make)
    for problem in [comm.bcast(problem, rank) for rank in range(comm.size)]:
        if problem:
            raise ValueError(problem)
    return cast(T, made)


def _attempt(make: Callable[[], T]) -> tuple[T | None, str]:
    """(what make() gives, ""), or (None, what is wrong)."""
    try:
        return make(), ""
    except ERRORS as error:
        return None, str(error)


class Interrupt:
    """Whether Ctrl-C was pressed while `with` this lasted; pressed again, it does what it does without this."""

    def __init__(self, comm: Communicator) -> None:
        self.comm = comm
        self.pressed_s: float | None = None

    def __bool__(self) -> bool:
        return self.pressed_s is not None

    def __enter__(self) -> None:
        self.before = signal.getsignal(signal.SIGINT)
        if self.before != signal.SIG_IGN:
            signal.signal(signal.SIGINT, self.note)

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self.before)

    def note(self, number: int, frame: FrameType | None) -> None:
        now_s = time.monotonic()
        if self.pressed_s is None:
            self.pressed_s = now_s
            if self.comm.rank == 0:
                print("cutpq: interrupted: ending after this step", file=sys.stderr)
        elif now_s - self.pressed_s > TWICE_S:
            signal.signal(signal.SIGINT, self.before)
            signal.raise_signal(signal.SIGINT)
