"""`cutpq inspect`: what the files of a checkpoint hold, against what its config claims."""

from __future__ import annotations

import argparse
import json
import warnings
from dataclasses import asdict
from typing import Any

from tqdm import tqdm

from ..checkpoint.claims import Inspection
from ..checkpoint.errors import CheckpointWarning
from ..checkpoint.folder import Checkpoint, open_checkpoint
from ..checkpoint.mlp_names import module_role
from ..weights.schemes import count_groups
from .table import Notes, alike, count, print_table

ABOUT = """One row for each kind of quantized module; layers that are alike share it.

  order   act-order (rows of the groups are scattered), trivial (row k is in group k // group), ordered (contiguous,
          with other borders), absent or unset (no g_idx: read as trivial)
  zeros   how zero points are stored: v1 holds z - 1, v2 holds z
  tp      for modules whose input features are cut: the most ranks that get whole groups; then those of 1, 2, 4, 8, 16
          that get equally many
"""

_TP_SIZES = (1, 2, 4, 8, 16)


def add_parser(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    raw = argparse.RawDescriptionHelpFormatter
    command = commands.add_parser("inspect", help="what a checkpoint holds", description=ABOUT, formatter_class=raw)
    command.add_argument("dir", metavar="DIR", help="a Hugging Face folder")
    command.add_argument("--json", action="store_true", help="one JSON object, with every module by itself")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    ckpt = open_checkpoint(args.dir)
    names = tqdm(ckpt.weights(), desc="reading", unit="module", delay=2, disable=None, leave=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointWarning)  # an Inspection has it as a note
        modules = [_describe(ckpt, ckpt.inspect(name)) for name in names]
    if args.json:
        print(json.dumps({"folder": str(ckpt.folder), "files": ckpt.files(), "modules": modules}, indent=2))
        return
    print(
        f"{ckpt.folder}: {count(len(ckpt.files()), 'file')}, {count(len(ckpt.tensors()), 'tensor')}, "
        f"{count(len(modules), 'quantized module')}"
    )
    for claims in dict.fromkeys(_show_claims(m["claims"]) for m in modules):
        print(f"claimed: {claims}")
    if not modules:
        return
    rows, notes = [], Notes()
    for names, module in alike(modules):
        row = [names, module["K"], module["N"], module["bits"], module["group_size"], module["order"], module["zeros"]]
        row += ["yes" if module["sym"] else "no", _show_tp(module), notes.marks(module["notes"])]
        rows.append(row)
    print()
    print_table(("module", "K", "N", "bits", "group", "order", "zeros", "sym", "tp", "notes"), rows)
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
