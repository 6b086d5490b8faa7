"""Time to first token and per output token on machines that are not here, by cutpq/cost/transformer.py."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from harness.report import Column, Table
from models.shapes import TRANSFORMERS

from cutpq.codecs.codec import Codec
from cutpq.cost.gpus import FP16, GPUS, INT4
from cutpq.cost.links import LINKS
from cutpq.cost.transformer import ModelShape, Step, rank_bytes, reduce_us, step_cost

WEIGHTS = {"int4": INT4, "fp16": FP16}

# Data sheets; 10^9 bytes.
MEMORY_GB = {"a100": 80, "h100": 80, "h200": 141, "l4": 24}

Row = dict[str, Any]


def projected_rows(
    models: Iterable[str],
    weights: Iterable[str],
    links: Iterable[str],
    tps: Iterable[int],
    prompts: Sequence[tuple[int, int]],
    codecs: Sequence[Codec | None],
) -> list[Row]:
    """One row for each model, weights, link, tp, prompt (batch, length) and codec, ordered like that."""
    return [
        row
        for model in models
        for form in weights
        for link in links
        for tp in tps
        if tp <= TRANSFORMERS[model].heads
        for prompt in prompts
        for row in _rows(TRANSFORMERS[model], form, link, tp, prompt, codecs)
    ]


def _rows(
    shape: ModelShape, weights: str, link: str, tp: int, prompt: tuple[int, int], codecs: Sequence[Codec | None]
) -> list[Row]:
    form, gpu = WEIGHTS[weights], GPUS[LINKS[link].gpu]
    batch, length = prompt
    nbytes = rank_bytes(shape, tp, form)
    found = []
    for codec in codecs if tp > 1 else [None]:
        first = step_cost(shape, Step(batch, length), tp, form, gpu, LINKS[link], codec)
        each = step_cost(shape, Step(batch, 1, length), tp, form, gpu, LINKS[link], codec)
        found.append(
            {
                "model": shape.name,
                "weights": weights,
                "link": link,
                "tp": tp,
                "batch": batch,
                "length": length,
                "codec": "none" if codec is None else codec.name,
                "algo": reduce_us(batch * length * shape.hidden, tp, LINKS[link], codec)[1],
                "rank_gb": nbytes / 1e9,
                "fits": nbytes < 0.9e9 * MEMORY_GB[gpu.name],
                "projected_compute_ms": first.compute_us / 1e3,
                "projected_collectives_ms": first.collectives_us / 1e3,
                "projected_ttft_ms": first.total_us / 1e3,
                "projected_tpot_ms": each.total_us / 1e3,
                "projected_block_us": {part.removesuffix("_us"): us for part, us in vars(first.block).items()},
                "projected": True,
            }
        )
    return found


def projected_lines(projected: list[Row]) -> list[str]:
    """The table: one line for each machine and prompt, one pair of columns for each codec."""
    codecs = list(dict.fromkeys(row["codec"] for row in projected if row["codec"] != "none"))
    columns = [
        Column("model", "model", 12),
        Column("weights", "weights", 7),
        Column("link", "link", 11),
        Column("tp", "tp", 2),
        Column("prompt", "prompt", 8),
        Column("projected_compute_ms", "compute_ms", 10, ".2f"),
        Column("projected_collectives_ms", "collectives_ms", 14, ".2f"),
        Column("projected_ttft_ms", "ttft_ms", 9, ".2f"),
        Column("projected_tpot_ms", "tpot_ms", 8, ".2f"),
    ]
    for codec in codecs:
        columns += [Column(f"ttft {codec}", f"x_ttft@{codec}", len(codec) + 7, ".2f")]
    columns += [Column(f"tpot {codec}", f"x_tpot@{codec}", len(codec) + 7, ".2f") for codec in codecs]
    table = Table((*columns, Column("memory", "memory", 7)))
    return [
        "# PROJECTED by cutpq/cost/transformer.py from NCCL 2.30.7's constants and the GPUs' data sheets; nothing of",
        "# it was measured. prompt: batch x length. ttft_ms, tpot_ms: without a codec, to the first token and for each",
        "# one after it. x_ttft@codec, x_tpot@codec: how many times quicker with it in every all_reduce of a block,",
        "# also where that is a loss.",
        table.heading(),
        *(table.line(_wide(list(group))) for _, group in groupby(projected, key=_machine)),
    ]


def _machine(row: Row) -> tuple[Any, ...]:
    return row["model"], row["weights"], row["link"], row["tp"], row["batch"], row["length"]


def _wide(group: list[Row]) -> Row:
    plain = next(row for row in group if row["codec"] == "none")
    wide = plain | {"prompt": f"{plain['batch']}x{plain['length']}", "memory": "fits" if plain["fits"] else "too big"}
    for row in group:
        if row is not plain:
            for kind in ("ttft", "tpot"):
                wide[f"{kind} {row['codec']}"] = plain[f"projected_{kind}_ms"] / row[f"projected_{kind}_ms"]
    return wide
