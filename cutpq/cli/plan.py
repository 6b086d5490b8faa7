"""`cutpq plan`: a scheme for each quantized layer of a checkpoint, and what each would cost."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any

from ..checkpoint.folder import open_checkpoint
from ..cost.links import LINKS
from ..cost.nodes import CABLES
from ..layers.plan import DEFAULT_LINK, LayerPlan, across_nodes, plan
from .table import Notes, alike, print_table

ABOUT = "For each kind of quantized module: the schemes that are possible, what they cost, and which to take."


def add_parser(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    command = commands.add_parser("plan", help="a scheme for each layer", description=ABOUT)
    command.add_argument("dir", metavar="DIR", help="a Hugging Face folder")
    command.add_argument("--tp", type=_positive, required=True, metavar="N", help="number of ranks")
    command.add_argument("--link", choices=LINKS, help=f"what joins the GPUs (default {DEFAULT_LINK})")
    command.add_argument("--between", choices=CABLES, help="what joins nodes, where there are more ranks than one has")
    command.add_argument("--per-node", type=_positive, default=8, metavar="N", help="ranks of a node (default 8)")
    command.add_argument("--m", type=_positive, default=16, metavar="M", help="tokens of a call (default 16)")
    command.add_argument("--json", action="store_true", help="a JSON list, with every module by itself")
    command.set_defaults(run=run)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def run(args: argparse.Namespace) -> None:
    link = args.link or DEFAULT_LINK
    ckpt = open_checkpoint(args.dir)
    layers = plan(ckpt, args.tp, link, args.m, args.between, args.per_node)
    if args.link is None:
        print(f"note: no --link was given, costs are those of {link}", file=sys.stderr)
    if args.json:
        print(json.dumps([asdict(layer) for layer in layers], indent=2))
        return
    print(f"tp={args.tp}, M={args.m}, {link}: bytes of the busiest rank, times predicted by a model of the link")
    rows, notes = [], Notes()
    for names, shown in alike([_show_layer(layer) for layer in layers]):
        rows.append([names, *(shown[key] for key in _PLAN_COLUMNS[1:-1]), notes.marks(shown["why"])])
    print()
    print_table(_PLAN_COLUMNS, rows)
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
