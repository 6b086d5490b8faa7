"""cutpq generate: prompts in, text out as it is made, and how long it took.

Rank 0 reads the prompts, draws the tokens and prints; the other ranks compute with it and are silent.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TextIO, TypeVar, cast

from .array import to_numpy
from .checkpoint.errors import CheckpointError, CheckpointWarning
from .model.generate import PromptError, Step, generate
from .model.sampler import Sampler
from .model.text import Detokenizer, NoTokenizerError, StopStrings, Tokenizer
from .model.transformer import DTYPES, load_model
from .ranks.communicator import Communicator
from .ranks.init import init

ABOUT = """Continue one or more prompts. They run as one batch, which a text leaves when it ends.

With several ranks: mpirun -n 4 cutpq generate DIR --prompt "...". Text goes to stdout, all else to stderr. Where the
folder has no tokenizer.json, or the package tokenizers is missing, prompts and output are token ids: --prompt "0 17 5".
Ctrl-C ends all texts where they are; what was made is printed, and the exit status is 130."""


def add_command(commands: Any) -> None:
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
ERRORS = (CheckpointError, NoTokenizerError, ValueError)  # of what a user passes, each a line


def run(args: argparse.Namespace) -> int:
    """The exit status: 0, 1 for an error, 130 for Ctrl-C."""
    out = sys.stdout  # of texts alone: what the library prints of backends and codecs goes to stderr
    with contextlib.redirect_stdout(sys.stderr):
        return _run(args, out)


def _run(args: argparse.Namespace, out: TextIO) -> int:
    comm = init()
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


# --- prompts and texts, on rank 0 ------------------------------------------------------------------------------------


class Texts:
    """The prompts as tokens, and what becomes of each.

    Raises ValueError for prompts that are missing, empty or unreadable; what Tokenizer raises.
    """

    def __init__(self, args: argparse.Namespace, out: TextIO):
        self.args, self.out = args, out
        given = [*args.prompt, *map(_read, args.prompt_file)]
        if not given:
            raise ValueError('there is no prompt: pass --prompt "..." or --prompt-file FILE')
        self.tokenizer = _tokenizer(args)
        self.prompts = [self._tokens(text, i) for i, text in enumerate(given, 1)]
        self.texts = [
            Text(text, prompt, self.tokenizer, args.stop) for text, prompt in zip(given, self.prompts, strict=True)
        ]
        self.shown = 0  # texts appear one after the other: that of the first prompt as it is made

    def _tokens(self, text: str, number: int) -> list[int]:
        if not text.strip():
            raise ValueError(f"prompt {number} is empty: give it a word to continue")
        if self.tokenizer:
            tokens = self.tokenizer.encode_chat(text) if self.args.chat else self.tokenizer.encode(text)
            if not tokens:
                raise ValueError(f"prompt {number}, {text!r}, has no token that the tokenizer knows")
            return tokens
        words = text.replace(",", " ").split()
        if not all(word.isdecimal() for word in words):
            raise ValueError(f'prompt {number} must be token ids, such as "0 17 5", got {text[:60]!r}')
        return [int(word) for word in words]

    def add(self, step: Step, interrupted: bool) -> dict[int, str]:
        """Take a step's tokens in; which texts end with it for a stop string or Ctrl-C."""
        for sequence, token in step.tokens.items():
            self.texts[sequence].add(token, is_end=step.finished.get(sequence) == "eos")
        if interrupted:
            return dict.fromkeys(step.tokens.keys() - step.finished.keys(), "interrupted")
        return {sequence: "stop" for sequence in step.tokens if self.texts[sequence].stop.met is not None}

    def show(self, step: Step) -> None:
        """Print what can be printed after a step."""
        for sequence, reason in step.finished.items():
            self.texts[sequence].finish(reason)
        if self.args.json:
            return
        while self.shown < len(self.texts):
            text = self.texts[self.shown]
            if len(self.texts) > 1 and not text.headed:
                print(f"# prompt {self.shown + 1}: {_shortened(text.given)}", file=self.out)
                text.headed = True
            print(text.take(), end="", flush=True, file=self.out)
            if not text.finished:
                return
            print(file=self.out)
            self.shown += 1

    def close(self, figures: dict[str, Any]) -> None:
        """Print what stands at the end: the figures, and what a reader may wonder about."""
        if self.args.json:
            told = {"sequences": [text.as_json() for text in self.texts], "figures": figures}
            print(json.dumps(told, indent=2), file=self.out)
        for number, text in enumerate(self.texts, 1):
            if self.args.stop and text.finished != "stop":
                print(f"note: prompt {number} met no stop string: it ended by {text.finished}", file=sys.stderr)
        print(_in_words(figures), file=sys.stderr)


class Text:
    """What becomes of one prompt."""

    def __init__(self, given: str, prompt: list[int], tokenizer: Tokenizer | None, stop: Sequence[str]):
        self.given, self.prompt = given, prompt
        self.tokens: list[int] = []
        self.pieces = Detokenizer(tokenizer.decode, prompt) if tokenizer else None
        self.stop = StopStrings(stop)
        self.text, self.taken = "", 0
        self.finished = ""
        self.headed = False

    def add(self, token: int, is_end: bool) -> None:
        self.tokens.append(token)
        if self.pieces is None:
            self.text += f"{token} "
        elif not is_end:
            self.text += self.stop.add(self.pieces.add(token))

    def finish(self, reason: str) -> None:
        self.finished = reason
        if self.pieces:
            self.text += self.stop.add(self.pieces.end()) + self.stop.end()

    def take(self) -> str:
        """What has come since this was asked last."""
        new, self.taken = self.text[self.taken :], len(self.text)
        return new

    def as_json(self) -> dict[str, Any]:
        text = self.text if self.pieces else None
        return {
            "prompt": self.given, "prompt_tokens": self.prompt, "tokens": self.tokens, "text": text,
            "finished": self.finished,
        }  # fmt: skip


def _read(path: str) -> str:
    try:
        raw = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        return raw.decode("utf-8").rstrip("\n")
    except OSError as error:
        raise ValueError(f"--prompt-file {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompt-file {path}: not UTF-8 text, at byte {error.start}") from None


def _tokenizer(args: argparse.Namespace) -> Tokenizer | None:
    """The folder's; None, and a line that says why, where there is none and none is needed."""
    try:
        return Tokenizer(args.dir)
    except NoTokenizerError as why:
        if args.chat or args.stop:
            raise ValueError(f"{'--chat' if args.chat else '--stop'} needs a tokenizer: {why}") from None
        print(f"note: {why}; prompts and output are token ids", file=sys.stderr)
        return None


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:57]}..."


# --- figures ---------------------------------------------------------------------------------------------------------


class Clock:
    """Time, tokens and sent bytes of each phase: load, prefill (to the first tokens), decode, text."""

    def __init__(self, comm: Communicator):
        self.comm = comm
        self.phases: dict[str, Phase] = {}
        self.last, self.sent = time.perf_counter(), comm.sent_bytes

    def phase(self, name: str, tokens: int) -> None:
        """What was done since the last call was this phase, and made so many tokens."""
        now, sent = time.perf_counter(), self.comm.sent_bytes
        phase = self.phases.setdefault(name, Phase())
        phase.calls += 1
        phase.tokens += tokens
        phase.seconds += now - self.last
        phase.sent += sent - self.sent
        self.last, self.sent = now, sent

    def figures(self, prompt_tokens: int) -> dict[str, Any]:
        """What one line tells; the same on every rank but for the times, which are rank 0's. Collective."""
        prefill, decode = self.phases["prefill"], self.phases.get("decode", Phase())
        mine = self.comm.xp.asarray([[phase.sent for phase in self.phases.values()]])
        self.sent_by_rank = to_numpy(self.comm.all_gather(mine)).reshape(self.comm.size, -1)
        return {
            "ranks": self.comm.size,
            "prompt_tokens": prompt_tokens,
            "new_tokens": prefill.tokens + decode.tokens,
            "first_token_ms": prefill.seconds * 1e3,
            "tokens_per_s": decode.tokens / decode.seconds if decode.tokens else None,
            "sent_bytes": self.sent_by_rank.sum(axis=1).tolist(),
        }

    def print_phases(self) -> None:
        """A table on stderr."""
        print("# phase   calls  tokens    time_ms  tokens/s  sent_bytes (most of any rank)", file=sys.stderr)
        for (name, phase), sent in zip(self.phases.items(), self.sent_by_rank.max(axis=0), strict=True):
            speed = f"{phase.tokens / phase.seconds:.1f}" if phase.tokens else "-"
            row = f"  {name:<7}{phase.calls:6}{phase.tokens:8}{phase.seconds * 1e3:11.1f}{speed:>10}{sent:12}"
            print(row, file=sys.stderr)


@dataclass
class Phase:
    """Sums over the calls of a phase."""

    calls: int = 0
    tokens: int = 0
    seconds: float = 0.0
    sent: int = 0


def _in_words(figures: dict[str, Any]) -> str:
    sent, speed = figures["sent_bytes"], figures["tokens_per_s"]
    spread = f"{min(sent)} to {max(sent)}" if min(sent) < max(sent) else f"{sent[0]}"
    return (
        f"# {figures['prompt_tokens']} prompt tokens, {figures['new_tokens']} new tokens, first after "
        f"{figures['first_token_ms']:.1f} ms, then {'-' if speed is None else format(speed, '.1f')} tokens/s; "
        f"{spread} bytes sent by each of {figures['ranks']} rank{'s' * (figures['ranks'] > 1)}"
    )
