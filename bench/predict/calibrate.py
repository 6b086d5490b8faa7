"""The performance model against published measurements: the formulas of predict/gemm.py on the counts of vLLM's Marlin.

Marlin multiplies what gemm_w4a16 multiplies, in the same way (cp.async, mma.sync, dequantization in registers), and
its times on three GPUs are published (published_gemm.csv); its machine code was counted (peer_counts.csv). What is
right for it should be nearly right for gemm_w4a16. Its blocks share the tiles of K and N evenly ("striped"), so that no
multiprocessor has more than another.

The harness is part of the measurement: before each run it zeroes 256 MB. L2 is then full of dirty lines, and each
line that is read must first be written back: DIRTY of the L2's size, or as much as is read. HARNESS_US is what an
empty run takes. Both were fitted.
"""

from __future__ import annotations

from collections.abc import Iterator
from csv import DictReader
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from harness.report import Column, Table

from cutpq.array import ceil_div
from predict.gemm import MACHINES, Machine, library_us

SIZE = 8192  # N and K of the published products
DIRTY, HARNESS_US = 0.76, 2.8
WARPS = 8  # that Marlin runs on a multiprocessor

# The A800 is an A100 whose NVLink is slower.
PUBLISHED_MACHINES = {"a800": MACHINES["a100"], "h100": MACHINES["h100"], "h200": MACHINES["h200"]}

TABLE = Table(
    (
        Column("gpu", "gpu", 4),
        Column("kernel", "kernel", 7),
        Column("M", "M", 5),
        Column("time_us", "published_us", 12, ".1f"),
        Column("predicted_us", "predicted_us", 12, ".1f"),
        Column("error", "error", 6, "+.0%"),
        Column("bound", "bound", 11),
    )
)

Row = dict[str, Any]


@cache
def facts(name: str) -> tuple[dict[str, str], ...]:
    """The rows of a data file beside this one; lines that begin with # say where they come from."""
    lines = (Path(__file__).parent / name).read_text().splitlines()
    return tuple(DictReader(line for line in lines if not line.startswith("#")))


def marlin_us(M: int, machine: Machine) -> tuple[float, str]:
    """Marlin's product of (M, SIZE) by (SIZE, SIZE) in the published harness, and what bounds it."""
    tokens = next((t for t in (8, 16, 32) if t >= M), 64)
    block_n, block_k = (128, 128) if M <= 16 else (256, 64)
    per_load = next(
        float(row["per_load"])
        for row in facts("peer_counts.csv")
        if (row["kernel"], row["arch"], row["tokens"]) == ("marlin (vLLM)", machine.arch, str(tokens))
    )
    token_blocks, columns = ceil_div(M, tokens), ceil_div(SIZE, block_n)
    units = ceil_div(ceil_div(SIZE, block_k) * columns * token_blocks, machine.device.sms)
    slots = machine.clock_ghz * 1e3 * min(machine.issue_fraction, machine.warp_fraction * WARPS / 4)
    codes, activations = SIZE * SIZE / 2, 2 * M * SIZE
    moved = codes + 2 * SIZE + 2 * activations
    through_l2 = moved + (token_blocks - 1) * codes + (columns - 1) * activations
    sums = 2 * 4 * M * block_n * machine.device.sms
    work = {
        "memory": (moved + _written_back(moved, machine)) / machine.copy_gb_s / 1e3,
        "L2": (through_l2 + sums) / machine.l2_gb_s / 1e3,
        "issue slots": units * (block_n * block_k / 2 / 512) * per_load / (4 * slots),
        "tensor": units * machine.tensor_us(2 * tokens * block_n * block_k * machine.device.sms),
    }
    bound = max(work, key=lambda part: work[part])
    return machine.launch_us + 5 * machine.latency_us + work[bound] + HARNESS_US, bound


def library_in_harness_us(M: int, machine: Machine) -> tuple[float, str]:
    """cuBLAS's product in the published harness, and what bounds it."""
    infinite = replace(machine, copy_gb_s=float("inf"))
    computing = library_us(M, SIZE, SIZE, infinite)
    moved = 2 * (SIZE * SIZE + 2 * M * SIZE)
    moving = (moved + _written_back(moved, machine)) / machine.copy_gb_s / 1e3
    fixed = machine.launch_us + 2 * machine.latency_us
    return max(computing, fixed + moving) + HARNESS_US, "memory" if fixed + moving > computing else "tensor"


def _written_back(moved: float, machine: Machine) -> float:
    return min(moved, DIRTY * machine.l2_bytes)


def rows() -> Iterator[Row]:
    """Every published time beside the predicted one; error is predicted / published - 1."""
    for row in facts("published_gemm.csv"):
        machine, M, published = PUBLISHED_MACHINES[row["gpu"]], int(row["M"]), float(row["time_us"])
        predicted, bound = (marlin_us if row["kernel"] == "marlin" else library_in_harness_us)(M, machine)
        yield {
            "gpu": row["gpu"],
            "kernel": row["kernel"],
            "M": M,
            "time_us": published,
            "predicted_us": predicted,
            "error": predicted / published - 1,
            "bound": bound,
        }
