"""`cutpq convert`: sort the groups of every down_proj, and say what was done and what stays."""

from __future__ import annotations

import argparse
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm

from ..checkpoint.mlp_names import module_role
from ..convert.convert import Conversion, convert
from .table import collapse, count

ABOUT = """Sort the rows of every act-ordered down_proj by group, let the columns of gate and up follow, and write
the checkpoint in the format that it has: same names, shapes, dtypes and results, for any engine and any number of
ranks. Then read everything back and prove it, bit for bit. SRC is never written to; DST appears when all is proven,
until then it is DST.unfinished-PID. Those that killed runs left are removed.

Where every down_proj is ordered already, nothing is written, and the exit status is 0. Weights in other files than
the checkpoint's own safetensors (*.bin, *.gguf, adapters) are left out, since their order would be the old one."""


def add_parser(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    command = commands.add_parser(
        "convert", help="sort the groups of every down_proj", description=ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    command.add_argument("src", metavar="SRC", help="a Hugging Face folder")
    command.add_argument("dst", metavar="DST", help="a folder that does not exist, or is empty")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    with _deferred_signals() as check, _Bars() as bars:

        def progress(stage: str, done: int, total: int) -> None:
            check()
            bars.show(stage, done, total)

        done = convert(args.src, args.dst, progress)
    if done.removed:
        print(f"removed, as left by runs that were killed: {', '.join(done.removed)}")
    if done.sorted:
        print(f"sorted: {', '.join(collapse(done.sorted))}")
    else:
        print(f"nothing to convert: no MLP of {args.src} has an act-ordered down_proj; {args.dst} was not made")
    for why, names in _reasons(done.act_order).items():
        print(f"act-ordered still, {why}: {', '.join(collapse(names))}")
    if done.left_out:
        print(f"left out, as its weights have the old order: {', '.join(done.left_out)}")
    if done.sorted:
        print(f"proved, bit for bit: {count(len(done.sorted), 'MLP')} permuted, all other tensors equal")
        print(f"{args.dst}: {_summary(done)}")


def _reasons(names: Sequence[str]) -> dict[str, list[str]]:
    """Why modules may stay act-ordered, and which."""
    why = {
        "column": "each rank gathers its input alone, nothing is sent",
        "row": "the layer before cannot follow (attention's features belong to heads)",
        "other": "not cut by tensor parallelism",
    }
    reasons: dict[str, list[str]] = {}
    for name in names:
        reasons.setdefault(why[module_role(name)], []).append(name)
    return reasons


def _summary(done: Conversion) -> str:
    mb, both = done.nbytes / 1e6, done.convert_s + done.prove_s
    text = f"{mb:.1f} MB in {both:.1f} s: written at {mb / done.convert_s:.0f} MB/s, with proof {mb / both:.0f} MB/s"
    peak = _peak_mb()
    return text if peak is None else f"{text}, peak memory {peak:.0f} MB"


def _peak_mb() -> float | None:
    """Most memory that this process has had resident, mapped files included; None where the system does not say.

    Linux's own account of it: getrusage would report the parent's peak where that was higher.
    """
    try:
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 / 1e6 if found else None


class _Bars:
    """A progress bar on stderr for each stage of a conversion, where stderr is a terminal."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._stage = ""

    def __enter__(self) -> _Bars:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, stage: str, done: int, total: int) -> None:
        """Move the bar of `stage` to `done` of `total` bytes; a new stage starts a new bar."""
        if stage != self._stage:
            self.__exit__()
            self._stage = stage
            self._bar = tqdm(total=total, desc=stage, unit="B", unit_scale=True, disable=None, leave=False)
        self._bar.update(done - self._bar.n)


@contextmanager
def _deferred_signals() -> Iterator[Callable[[], None]]:
    """Let Ctrl-C, SIGTERM and SIGHUP wait until the function that this gives is called, and raise there.

    An exception out of a signal handler can be lost in C code or in a callback; the conversion would then go on, or
    leave its folder. A second signal acts at once. Signals that are ignored, as under nohup, stay ignored.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def check() -> None:
        if received:
            raise KeyboardInterrupt if received[0] == signal.SIGINT else SystemExit(128 + received[0])

    before = {
        number: handler
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if (handler := signal.getsignal(number)) != signal.SIG_IGN
    }
    for number in before:
        signal.signal(number, note)
    try:
        yield check
    finally:
        restore()
