"""What the cost model says of MLPs on machines that are not here, beside the maxima of the TP-aware paper.

The paper (arXiv 2402.04925) measured its Algorithm 2 (naive) against its Algorithm 3 (TP-aware) with fp16 weights,
for M = 1 to 16 on 8 A100 and 8 H100, on two matrices, X W1 W2, without a gate. So `fp16` rows have no gate here
either; int4 rows are the model as it is. Constants and their sources are in cutpq/cost/; none is fitted to it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import groupby
from typing import Any

from harness.report import Column, Table
from models.shapes import MODELS

from cutpq.cost.gpus import FP16, GPUS, INT4, WeightFormat
from cutpq.cost.links import LINKS
from cutpq.cost.mlp import MlpShape, mlp_cost

TPS = (1, 2, 4, 8)
SCHEMES = ("naive", "local", "tp-aware")
PAPER_MAXIMUM = {"llama-70b": 1.81, "granite-20b": 1.78}
PAPER_LINKS = ("a100-nvlink", "h100-nvlink")

Row = dict[str, Any]


def projected_rows(models: Iterable[str], links: Iterable[str], tokens: Iterable[int]) -> list[Row]:
    """One row for each model, weight format, link, TP, M and scheme, ordered like that."""
    return [
        row
        for model in models
        for form in (FP16, INT4)
        for link in links
        for tp in TPS
        for M in tokens
        for row in _rows(_as_measured(MODELS[model], form), form, link, tp, M)
    ]


def _as_measured(shape: MlpShape, form: WeightFormat) -> MlpShape:
    return replace(shape, gated=False) if form == FP16 else shape


def _rows(shape: MlpShape, form: WeightFormat, link: str, tp: int, M: int) -> list[Row]:
    gpu = GPUS[LINKS[link].gpu]
    costs = {s: mlp_cost(shape, M, tp, s, form, gpu, LINKS[link]) for s in SCHEMES}
    return [
        {
            "scheme": scheme,
            "tp": tp,
            "M": M,
            "K": shape.K,
            "H": shape.H,
            "N": shape.N,
            "group_size": None if form == FP16 else form.group_size,
            "time_us": round(cost.total_us, 2),
            "wire_bytes": cost.sent_bytes,
            "speedup": round(costs["naive"].total_us / cost.total_us, 4),
            "projected": True,
            "link": link,
            "model": shape.name,
            "weights": "fp16" if form == FP16 else f"int{form.bits}",
            "gated": shape.gated,
            "paper_speedup": PAPER_MAXIMUM.get(shape.name) if form == FP16 and link in PAPER_LINKS else None,
        }
        for scheme, cost in costs.items()
    ]


def projected_lines(projected: list[Row]) -> list[str]:
    """The table: times at the greatest M, and the speedup of tp-aware over naive at every M."""
    tokens = sorted({row["M"] for row in projected})
    most = tokens[-1]
    columns = [
        Column("model", "model", 12),
        Column("weights", "weights", 7),
        Column("link", "link", 12),
        Column("tp", "tp", 2),
    ]
    columns += [Column(f"{s}_us@{most}", f"{s}_us@{most}", len(s) + 6, ".1f") for s in SCHEMES]
    columns += [Column(f"x@{M}", f"x@{M}", 5, ".2f") for M in tokens] + [Column("paper", "paper_max", 9, ".2f")]
    table = Table(tuple(columns))
    return [
        "# PROJECTED by cutpq/cost/mlp.py from NCCL 2.30.7's latency and bandwidth constants and GPU data sheets;",
        "# nothing of it was measured. x@M: naive's time over tp-aware's at M tokens. fp16 rows have no gate, as in",
        "# the paper (arXiv 2402.04925); paper_max: the most it reports for a model, over all its M, TP and machines.",
        table.heading(),
        *(table.line(_wide(list(group))) for _, group in groupby(projected, key=_machine)),
        *_disagreement(projected),
    ]


def _machine(row: Row) -> tuple[Any, ...]:
    return row["model"], row["weights"], row["link"], row["tp"]


def _wide(group: list[Row]) -> Row:
    first = group[0]
    wide = {key: first[key] for key in ("model", "weights", "link", "tp")} | {"paper": first["paper_speedup"]}
    for row in group:
        wide[f"{row['scheme']}_us@{row['M']}"] = row["time_us"]
        if row["scheme"] == "tp-aware":
            wide[f"x@{row['M']}"] = row["speedup"]
    return wide


def _disagreement(projected: list[Row]) -> list[str]:
    """By how much the projection differs from the paper's maxima, and why it probably does."""
    compared = [r for r in projected if r["paper_speedup"] is not None and r["scheme"] == "tp-aware"]
    if not compared:
        return []
    found = []
    for model, group in groupby(compared, key=lambda r: r["model"]):
        best = max(group, key=lambda r: r["speedup"])
        saved = best["time_us"] * (best["speedup"] - 1)
        needed = best["time_us"] * (best["paper_speedup"] - 1)
        found.append(
            f"# {model}: at most {best['speedup']:.2f}x here (tp={best['tp']}, M={best['M']}, {best['link']}), "
            f"{best['paper_speedup']:.2f}x in the paper. Naive loses {saved:.0f} us here; for the paper's ratio it "
            f"would have to lose {needed:.0f}."
        )
    return [*found, *_WHY]


_WHY = (
    "# Naive's extra work is one all_gather and one permutation. At NCCL's own latencies, link bandwidth and 3 us a",
    "# launch, they cannot cost what the paper's ratios imply. Its times contain what this model leaves out: what",
    "# each call of a framework costs on the host (the collective, joining its parts, the index, the chunk and its",
    "# copy are separate calls, and tp-aware drops them all), and collectives slower than NCCL's model of them. That",
    "# is likely, not proven: the paper's maxima were at hand, its tables of times were not. Where the products are",
    "# short (int4, tp=8) the same exchange weighs more, and the model comes closer to the published ratios.",
)
