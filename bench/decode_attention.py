"""How fast a GPU attends to the cache in a decode step, against a copy in the same run.

    python bench/decode_attention.py               on a GPU
    python bench/decode_attention.py --predict     from bytes and machine code, for three GPUs; needs none
    CUTPQ_HOST_KERNELS=1 python bench/decode_attention.py --smoke       the kernel on the CPU: does it work?

GB/s counts the keys and values that are seen once; of_copy divides it by the bandwidth of a copy of as many bytes. On a
GPU calls rotate over caches that no L2 keeps, in a CUDA graph. check: the result is that of the formula in NumPy,
within the rounding of probabilities and result.

This has not run on a GPU yet.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from harness.gpu_clock import NoGpu, gpu_module, graph_us
from harness.report import Column, Table, header, write_json
from predict.attention import Shape, predict
from predict.gemm import MACHINES
from predict.machine_code import DisassemblerMissing

from cutpq.array import ceil_div, to_numpy
from cutpq.kernels import load as kernels
from cutpq.kernels.source import source_digest
from cutpq.model import formulas
from cutpq.model.decode_attention import decode_attention
from cutpq.ranks.alone import SelfCommunicator

# Layers of Llama-2-7B and of Llama-2-70B whole and on one of 8 ranks, in caches of 8,192 tokens.
SHAPES = [Shape(8, kv, rep, 128, keys, 8192) for kv, rep in ((32, 1), (8, 8), (1, 8)) for keys in (1024, 4096, 8192)]
SMOKE_SHAPES = [Shape(2, 2, 4, 64, 200, 256)]
SPREAD = 256 << 20  # bytes that calls rotate over: several times an L2

COLUMNS = (
    Column("batch", "batch", 5),
    Column("kv_heads", "kv_heads", 8),
    Column("rep", "rep", 3),
    Column("head_dim", "head_dim", 8),
    Column("keys", "keys", 5),
)
TABLE = Table(
    (
        *COLUMNS,
        Column("time_us", "time(us)", 10, ".1f"),
        Column("gb_s", "GB/s", 8, ".1f"),
        Column("of_copy", "of_copy", 7, ".2f"),
        Column("check", "check", 5),
    )
)
PREDICTED_TABLE = Table(
    (
        Column("machine", "machine", 7),
        *COLUMNS,
        Column("time_us", "time_us_proj", 12, ".1f"),
        Column("gb_s", "GB/s_proj", 9, ".0f"),
        Column("of_copy", "of_copy_proj", 12, ".2f"),
        Column("bound", "bound", 14),
    )
)

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; 1 where a check fails, 2 without a GPU or, for --predict, without a disassembler."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predict", action="store_true", help="count bytes and instructions instead")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write one object a row")
    parser.add_argument("--smoke", action="store_true", help="one small shape")
    args = parser.parse_args(argv)
    shapes = SMOKE_SHAPES if args.smoke else SHAPES
    try:
        found = predicted_rows(shapes) if args.predict else measured_rows(shapes, 0 if args.smoke else SPREAD)
    except (NoGpu, DisassemblerMissing) as error:
        print(f"decode_attention.py: {error}", file=sys.stderr)
        return 2
    table = PREDICTED_TABLE if args.predict else TABLE
    print("\n".join([table.heading(), *map(table.line, found)]))
    if args.json:
        write_json(args.json, found)
    return 1 if any(row.get("check") == "FAIL" for row in found) else 0


def measured_rows(shapes: Sequence[Shape], spread: int = SPREAD) -> list[Row]:
    """Each shape on the current GPU, or on NumPy arrays under CUTPQ_HOST_KERNELS. `spread` as SPREAD."""
    xp: ModuleType = np if kernels.usable(np) else gpu_module()
    device = None if xp is np else int(xp.cuda.runtime.getDevice())
    print("\n".join(header(SelfCommunicator("the kernel alone", xp, device))))
    return [_measured(shape, xp, spread) for shape in shapes]


def _measured(shape: Shape, xp: ModuleType, spread: int) -> Row:
    rng = np.random.default_rng(0)
    copies = 1 if xp is np else max(1, ceil_div(spread, shape.read_bytes))
    B, KV, D = shape.batch, shape.kv_heads, shape.head_dim
    q = xp.asarray(rng.standard_normal((B, KV, shape.rep, D), np.float32).astype(np.float16))
    caches = [xp.asarray(rng.standard_normal((2, B, KV, shape.length, D), np.float32).astype(np.float16))]
    caches += [caches[0].copy() for _ in range(copies - 1)]
    positions = xp.full(B, shape.keys - 1, np.int32)

    def call(i: int) -> Any:
        keys, values = caches[i % copies]
        return decode_attention(q, keys, values, positions, D**-0.5, max_keys=shape.keys)

    halves = [cache.reshape(-1)[: shape.read_bytes // 4] for cache in caches]  # a copy reads and writes each byte
    y = to_numpy(call(0))
    took = graph_us(call, 2 if xp is np else max(8, copies), xp)
    copy_us = graph_us(lambda i: halves[i % copies].copy(), 2 if xp is np else max(8, copies), xp)
    keys, values = map(to_numpy, caches[0])
    want = formulas.decode_attention(to_numpy(q), keys, values, to_numpy(positions), D**-0.5).astype(np.float64)
    close = np.abs(y - want) <= 2.0**-9 * (np.abs(want) + np.abs(values).astype(np.float32).mean())
    rate = shape.read_bytes / took / 1e3
    return vars(shape) | {
        "time_us": took, "gb_s": rate, "of_copy": copy_us / took, "check": "ok" if close.all() else "FAIL",
        "projected": False,
    }  # fmt: skip


def predicted_rows(shapes: Sequence[Shape]) -> list[Row]:
    """Each shape on each machine of predict.gemm."""
    print(f"# PREDICTED, not measured, float16; CUDA sources {source_digest()}. The model: bench/predict/attention.py")
    rows = []
    for machine in MACHINES.values():
        for shape in shapes:
            prediction = predict(shape, machine)
            rate = shape.read_bytes / prediction.time_us / 1e3
            rows.append(
                {"machine": machine.name, **vars(shape), "time_us": prediction.time_us, "gb_s": rate}
                | {"of_copy": rate / machine.copy_gb_s, "bound": prediction.bound, "projected": True}
            )
    return rows


if __name__ == "__main__":
    sys.exit(main())
