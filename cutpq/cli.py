"""cutpq inspect | plan | convert | quantize | generate: what a checkpoint holds, what to do with it, and doing it."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm

from . import cli_generate
from .checkpoint.claims import Inspection
from .checkpoint.errors import CheckpointError, CheckpointWarning
from .checkpoint.folder import Checkpoint, open_checkpoint
from .checkpoint.mlp_names import module_role
from .convert.convert import Conversion, convert
from .convert.reader import ConversionError
from .cost.links import LINKS
from .cost.nodes import CABLES
from .layers.plan import DEFAULT_LINK, LayerPlan, across_nodes, plan
from .quantize.command import add_parser as add_quantize
from .quantize.job import QuantizationError
from .weights.schemes import count_groups

_EXAMPLES = """examples:
  cutpq inspect Llama-2-70B-GPTQ                        what the files hold, against what the config claims
  cutpq inspect Llama-2-70B-GPTQ --json | jq '.modules[].order'
  cutpq plan Llama-2-70B-GPTQ --tp 8 --link h100-nvlink
  cutpq convert Llama-2-70B-GPTQ Llama-2-70B-sorted     no act-order in any down_proj, for any engine and any TP
  mpirun -n 8 cutpq generate Llama-2-70B-GPTQ --prompt "The reason is"
"""

_INSPECT = """One row for each kind of quantized module; layers that are alike share it.

  order   act-order (rows of the groups are scattered), trivial (row k is in group k // group), ordered (contiguous,
          with other borders), absent or unset (no g_idx: read as trivial)
  zeros   how zero points are stored: v1 holds z - 1, v2 holds z
  tp      for modules whose input features are cut: the most ranks that get whole groups; then those of 1, 2, 4, 8, 16
          that get equally many
"""

_CONVERT = """Sort the rows of every act-ordered down_proj by group, let the columns of gate and up follow, and write
the checkpoint in the format that it has: same names, shapes, dtypes and results, for any engine and any number of
ranks. Then read everything back and prove it, bit for bit. SRC is never written to; DST appears when all is proven,
until then it is DST.unfinished-PID. Those that killed runs left are removed.

Where every down_proj is ordered already, nothing is written, and the exit status is 0. Weights in other files than
the checkpoint's own safetensors (*.bin, *.gguf, adapters) are left out, since their order would be the old one."""

_TP_SIZES = (1, 2, 4, 8, 16)

# A part of a module's name that is a number, of a layer or an expert; the 1 of w1 is none.
_NUMBER = re.compile(r"(?<=\.)[0-9]{1,18}(?=\.|$)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; its exit status: 0, 1 for an error, 2 for wrong usage, 130 for Ctrl-C."""
    args = _parser().parse_args(argv)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", CheckpointWarning)
            status = args.run(args)
        for message in dict.fromkeys(str(w.message) for w in caught):
            print(f"note: {message}", file=sys.stderr)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe, such as head, closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (CheckpointError, ConversionError, QuantizationError) as e:
        return _fail(str(e))
    except OSError as e:
        path = e.filename2 or e.filename  # of a copy, the file that was written
        return _fail(f"{path}: {e.strerror}" if path else str(e))
    except KeyboardInterrupt:
        print("cutpq: interrupted", file=sys.stderr)
        return 130
    return status or 0


def _fail(message: str) -> int:
    print(f"cutpq: error: {message}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="cutpq", description=__doc__, epilog=_EXAMPLES, formatter_class=raw)
    commands = parser.add_subparsers(required=True, metavar="inspect | plan | convert | quantize | generate")

    command = commands.add_parser("inspect", help="what a checkpoint holds", description=_INSPECT, formatter_class=raw)
    command.add_argument("dir", metavar="DIR", help="a Hugging Face folder")
    command.add_argument("--json", action="store_true", help="one JSON object, with every module by itself")
    command.set_defaults(run=_inspect)

    about = "For each kind of quantized module: the schemes that are possible, what they cost, and which to take."
    command = commands.add_parser("plan", help="a scheme for each layer", description=about)
    command.add_argument("dir", metavar="DIR", help="a Hugging Face folder")
    command.add_argument("--tp", type=_positive, required=True, metavar="N", help="number of ranks")
    command.add_argument("--link", choices=LINKS, help=f"what joins the GPUs (default {DEFAULT_LINK})")
    command.add_argument("--between", choices=CABLES, help="what joins nodes, where there are more ranks than one has")
    command.add_argument("--per-node", type=_positive, default=8, metavar="N", help="ranks of a node (default 8)")
    command.add_argument("--m", type=_positive, default=16, metavar="M", help="tokens of a call (default 16)")
    command.add_argument("--json", action="store_true", help="a JSON list, with every module by itself")
    command.set_defaults(run=_plan)

    command = commands.add_parser(
        "convert", help="sort the groups of every down_proj", description=_CONVERT, formatter_class=raw
    )
    command.add_argument("src", metavar="SRC", help="a Hugging Face folder")
    command.add_argument("dst", metavar="DST", help="a folder that does not exist, or is empty")
    command.set_defaults(run=_convert)

    add_quantize(commands)
    cli_generate.add_command(commands)
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


# --- inspect -------------------------------------------------------------------------------------------------------


def _inspect(args: argparse.Namespace) -> None:
    ckpt = open_checkpoint(args.dir)
    names = tqdm(ckpt.weights(), desc="reading", unit="module", delay=2, disable=None, leave=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointWarning)  # an Inspection has it as a note
        modules = [_describe(ckpt, ckpt.inspect(name)) for name in names]
    if args.json:
        print(json.dumps({"folder": str(ckpt.folder), "files": ckpt.files(), "modules": modules}, indent=2))
        return
    print(
        f"{ckpt.folder}: {_count(len(ckpt.files()), 'file')}, {_count(len(ckpt.tensors()), 'tensor')}, "
        f"{_count(len(modules), 'quantized module')}"
    )
    for claims in dict.fromkeys(_show_claims(m["claims"]) for m in modules):
        print(f"claimed: {claims}")
    if not modules:
        return
    rows, notes = [], _Notes()
    for names, module in _alike(modules):
        row = [names, module["K"], module["N"], module["bits"], module["group_size"], module["order"], module["zeros"]]
        row += ["yes" if module["sym"] else "no", _show_tp(module), notes.marks(module["notes"])]
        rows.append(row)
    print()
    _print_table(("module", "K", "N", "bits", "group", "order", "zeros", "sym", "tp", "notes"), rows)
    notes.print()


def _describe(ckpt: Checkpoint, found: Inspection) -> dict[str, Any]:
    groups = count_groups(ckpt.g_idx(found.name))
    row_parallel = module_role(found.name) == "row"
    return {
        "name": found.name,
        "K": found.K,
        "N": found.N,
        "bits": found.bits,
        "group_size": found.group_size,
        "groups": groups,
        "order": found.order_kind,
        "zeros": found.zeros.decided,
        "sym": found.sym,
        "max_tp": groups if row_parallel else None,
        "equal_tp": [tp for tp in _TP_SIZES if groups % tp == 0] if row_parallel else None,
        "claims": asdict(found.spec),
        "notes": list(found.notes),
    }


def _show_claims(claims: dict[str, Any]) -> str:
    label = "" if claims["label"] == claims["format"] else f" ({claims['label']})"
    flags = ", ".join(f"{key} {str(claims[key]).lower()}" for key in ("bits", "group_size", "desc_act", "sym"))
    return f"{claims['format']}{label}, {flags}"


def _show_tp(module: dict[str, Any]) -> str:
    if module["max_tp"] is None:
        return "-"
    return f"<={module['max_tp']}, equal at {' '.join(map(str, module['equal_tp']))}"


# --- plan ----------------------------------------------------------------------------------------------------------


def _plan(args: argparse.Namespace) -> None:
    link = args.link or DEFAULT_LINK
    ckpt = open_checkpoint(args.dir)
    layers = plan(ckpt, args.tp, link, args.m, args.between, args.per_node)
    if args.link is None:
        print(f"note: no --link was given, costs are those of {link}", file=sys.stderr)
    if args.json:
        print(json.dumps([asdict(layer) for layer in layers], indent=2))
        return
    print(f"tp={args.tp}, M={args.m}, {link}: bytes of the busiest rank, times predicted by a model of the link")
    rows, notes = [], _Notes()
    for names, shown in _alike([_show_layer(layer) for layer in layers]):
        rows.append([names, *(shown[key] for key in _PLAN_COLUMNS[1:-1]), notes.marks(shown["why"])])
    print()
    _print_table(_PLAN_COLUMNS, rows)
    notes.print()
    if args.between:
        print(f"\n{across_nodes(ckpt, args.tp, link, args.m, args.between, args.per_node)}")
    elif args.tp > args.per_node:
        print(f"\ntp={args.tp} is taken for one machine; --between says what joins nodes of --per-node ranks")


_PLAN_COLUMNS = (
    "module", "role", "K", "N", "order", "scheme", "read_bytes", "sent_bytes", "time_us", "other schemes (us)", "why"
)  # fmt: skip


def _show_layer(layer: LayerPlan) -> dict[str, Any]:
    others = [f"{o.scheme} {o.time_us:.1f}" for o in layer.options if o.scheme != layer.chosen]
    return {
        "name": layer.name,
        "role": layer.role,
        "K": layer.K,
        "N": layer.N,
        "order": "act-order" if layer.act_order else "contiguous",
        "scheme": layer.chosen,
        "read_bytes": layer.best.read_bytes,
        "sent_bytes": layer.best.sent_bytes,
        "time_us": f"{layer.best.time_us:.1f}",
        "other schemes (us)": ", ".join(others) or "-",
        "why": [layer.reason],
    }


# --- convert -------------------------------------------------------------------------------------------------------


def _convert(args: argparse.Namespace) -> None:
    with _deferred_signals() as check, _Bars() as bars:

        def progress(stage: str, done: int, total: int) -> None:
            check()
            bars.show(stage, done, total)

        done = convert(args.src, args.dst, progress)
    if done.removed:
        print(f"removed, as left by runs that were killed: {', '.join(done.removed)}")
    if done.sorted:
        print(f"sorted: {', '.join(_collapse(done.sorted))}")
    else:
        print(f"nothing to convert: no MLP of {args.src} has an act-ordered down_proj; {args.dst} was not made")
    for why, names in _reasons(done.act_order).items():
        print(f"act-ordered still, {why}: {', '.join(_collapse(names))}")
    if done.left_out:
        print(f"left out, as its weights have the old order: {', '.join(done.left_out)}")
    if done.sorted:
        print(f"proved, bit for bit: {_count(len(done.sorted), 'MLP')} permuted, all other tensors equal")
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


# --- tables --------------------------------------------------------------------------------------------------------


class _Notes:
    """Sentences too long for a table: a mark in the row, the sentence once below."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def marks(self, sentences: Sequence[str]) -> str:
        """The marks of these sentences, such as "[1] [3]"."""
        return " ".join(f"[{self._numbers.setdefault(s, len(self._numbers) + 1)}]" for s in sentences)

    def print(self) -> None:
        """Print each sentence behind its mark."""
        if self._numbers:
            print()
        for sentence, number in self._numbers.items():
            print(f"[{number}] {sentence}")


def _alike(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows that differ in the numbers of their names only, as one: ("layers.{0..31}.mlp.up_proj  x32", row)."""
    alike: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        key = json.dumps({**row, "name": _NUMBER.sub("#", row["name"])}, default=str)
        alike.setdefault(key, []).append(row)
    for same in alike.values():
        for names in _collapse([row["name"] for row in same]):
            yield names, same[0]


def _collapse(names: Sequence[str]) -> list[str]:
    """Names that differ in their numbers only, as one with runs of numbers such as {0..31}, and how many there are."""
    by_texts: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        by_texts.setdefault(tuple(_NUMBER.split(name)), []).append(name)
    shown = []
    for texts, alike in by_texts.items():
        numbers = [[int(n) for n in _NUMBER.findall(name)] for name in alike]
        distinct = [sorted(set(column)) for column in zip(*numbers, strict=True)]
        if len(alike) > 1 and math.prod(map(len, distinct)) == len(alike):  # every combination of numbers is there
            pieces = [text + _runs(n) for text, n in zip(texts, distinct, strict=False)]
            shown.append("".join(pieces) + texts[-1] + f"  x{len(alike)}")
        else:
            shown += alike
    return shown


def _runs(numbers: list[int]) -> str:
    """[3] -> "3", [0, 1, 2, 5] -> "{0..2,5}"."""
    if len(numbers) == 1:
        return str(numbers[0])
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    return "{" + ",".join(f"{a}..{b}" if b > a else str(a) for a, b in zip(starts, ends, strict=True)) + "}"


def _print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns two spaces apart; numbers to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    columns = list(zip(header, *cells, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [all(re.fullmatch(r"[\d.]+", cell) for cell in column[1:]) for column in columns]
    for row in [list(header), *cells]:
        aligned = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True))
        print("  ".join(aligned).rstrip())


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
