"""Memory and speed of `cutpq convert` on a synthetic checkpoint of 2 GB or more, beside a plain copy of its files.

    python bench/convert.py [--model llama-70b] [--gb 2] [-n 3] [--folder DIR]

Writes random GPTQ weights (4 bits, groups of 128, act-order everywhere) of a model's shape, one shard a layer and no
embeddings, so that the largest tensor is a qweight: memory has the least room. The conversion is the command itself,
in a process of its own. All files are in the page cache, for the copy as for the conversion. The two take turns, -n
times; times are medians, `of_copy` is the speed of a row over that of the copy.

peak_MB is all that the process had resident, mapped files and the interpreter included. The check is that the
conversion adds to the interpreter with cutpq imported at most 4 times the largest tensor. Needs three times --gb of
disk.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from harness.flags import at_least
from harness.report import Column, Table, header
from models.shapes import MODELS

import cutpq as cq
from cutpq.cost.mlp import MlpShape

GROUP_SIZE = 128
TABLE = Table(
    (
        Column("what", "what", 18),
        Column("mb", "MB", 8, ".0f"),
        Column("time_s", "time_s", 8, ".2f"),
        Column("mb_per_s", "MB_per_s", 9, ".0f"),
        Column("of_copy", "of_copy", 7, ".2f"),
        Column("peak_mb", "peak_MB", 8, ".0f"),
        Column("per_largest", "peak/largest", 13, ".2f"),
        Column("check", "check", 6),
    )
)


def main() -> int:
    """Print the table; 1 where the conversion fails or takes more memory than allowed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=[m.name for m in MODELS.values() if m.gated], default="llama-70b")
    parser.add_argument("--gb", type=float, default=2.0, help="size of the checkpoint, rounded up to whole layers")
    parser.add_argument("-n", type=at_least(1), default=3, help="times that each is done, in turns (3)")
    parser.add_argument("--folder", help="where to make a temporary folder (default: the system's)")
    args = parser.parse_args()
    print("\n".join(header(cq.init("self"))))
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        src, copy, dst = (Path(folder) / name for name in ("src", "copy", "dst"))
        nbytes, largest = write_checkpoint(src, MODELS[args.model], args.gb * 1e9)
        empty = interpreter_bytes()
        print(f"# {args.model}: {nbytes / 1e6:.0f} MB, largest tensor {largest / 1e6:.0f} MB")
        print(f"# peak of an interpreter that only imports cutpq: {empty / 1e6:.0f} MB")
        print(TABLE.heading())
        copied, written, proven, peaks, holds = [], [], [], [], True
        for _ in range(args.n):
            copied.append(plain_copy(src, copy))
            output, time_s, peak, status = run([sys.executable, "-m", "cutpq", "convert", str(src), str(dst)])
            told = re.search(r"written at (\d+) MB/s", output)
            holds &= status == 0 and told is not None and peak - empty <= 4 * largest
            written.append(nbytes / 1e6 / float(told[1]) if told else math.nan)
            proven.append(time_s)
            peaks.append(peak)
            shutil.rmtree(dst, ignore_errors=True)
        copy_s = statistics.median(copied)
        row("plain copy", nbytes, copied, copy_s)
        row("convert, written", nbytes, written, copy_s)
        row("written and proven", nbytes, proven, copy_s, max(peaks), largest, "ok" if holds else "FAIL")
    return 0 if holds else 1


def row(
    what: str, nbytes: int, times: list[float], copy_s: float, peak: int = 0, largest: int = 0, check: str = "-"
) -> None:
    """Print one row."""
    time_s = statistics.median(times)
    values: dict[str, object] = {"what": what, "mb": nbytes / 1e6, "time_s": time_s, "check": check}
    values |= {"mb_per_s": nbytes / 1e6 / time_s, "of_copy": copy_s / time_s}
    if peak:
        values |= {"peak_mb": peak / 1e6, "per_largest": peak / largest}
    print(TABLE.line(values), flush=True)


def plain_copy(src: Path, dst: Path) -> float:
    """Seconds for a copy by read and write, in blocks: what a conversion without any work would do."""
    os.sync()
    began = time.perf_counter()
    dst.mkdir()
    for path in sorted(src.iterdir()):
        with path.open("rb") as old, (dst / path.name).open("wb") as new:
            shutil.copyfileobj(old, new, 1 << 22)
    taken = time.perf_counter() - began
    shutil.rmtree(dst)
    return taken


def run(command: list[str]) -> tuple[str, float, int, int]:
    """(what it prints, seconds, peak resident bytes, exit status) of a command."""
    os.sync()
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    # Linux counts the pages of the parent at fork as its child's peak: this process must never hold much.
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return output, time.perf_counter() - began, usage.ru_maxrss * 1024, process.returncode


def interpreter_bytes() -> int:
    """Peak resident bytes of an interpreter that only imports the command line, by Linux's account in the process."""
    told = run([sys.executable, "-c", "import cutpq.cli.main; print(open('/proc/self/status').read())"])[0]
    return int(re.findall(r"VmHWM:\s*(\d+) kB", told)[0]) * 1024


def write_checkpoint(folder: Path, mlp: MlpShape, nbytes: float) -> tuple[int, int]:
    """Layers of random weights until there are `nbytes`. Returns (bytes of the shards, bytes of the largest tensor)."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    weight_map, total, largest, layer = {}, 0, 0, 0
    while total < nbytes:
        file, at = f"model-{layer:05d}.safetensors", f"model.layers.{layer}"
        modules = {f"{at}.self_attn.{n}_proj": (mlp.K, mlp.K if n in "qo" else mlp.K // 8) for n in "qkvo"}
        modules |= {f"{at}.mlp.{n}_proj": (mlp.K, mlp.H) for n in ("gate", "up")}
        modules |= {f"{at}.mlp.down_proj": (mlp.H, mlp.N)}
        tensors = [t for name, (K, N) in modules.items() for t in _gptq_tensors(name, K, N)]
        _write_shard(folder / file, tensors, rng)
        weight_map.update({name: file for name, _, _ in tensors})
        sizes = [4 * int(np.prod(shape)) // (2 if dtype == "F16" else 1) for _, dtype, shape in tensors]
        total, largest, layer = total + sum(sizes), max(largest, *sizes), layer + 1
    config = {"quant_method": "gptq", "bits": 4, "group_size": GROUP_SIZE, "desc_act": True, "sym": True}
    (folder / "config.json").write_text(json.dumps({"hidden_act": "silu", "quantization_config": config}))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return total, largest


def _gptq_tensors(name: str, K: int, N: int) -> list[tuple[str, str, tuple[int, ...]]]:
    G = K // GROUP_SIZE
    return [
        (f"{name}.qweight", "I32", (K // 8, N)),
        (f"{name}.qzeros", "I32", (G, N // 8)),
        (f"{name}.scales", "F16", (G, N)),
        (f"{name}.g_idx", "I32", (K,)),
    ]


def _write_shard(path: Path, tensors: list[tuple[str, str, tuple[int, ...]]], rng: np.random.Generator) -> None:
    entries, offset = {}, 0
    for name, dtype, shape in tensors:
        size = int(np.prod(shape)) * (2 if dtype == "F16" else 4)
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": (offset, offset + size)}
        offset += size
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name, _, shape in tensors:
            for block in _random_blocks(name, shape, rng):
                out.write(block.data)


def _random_blocks(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> Iterator[np.ndarray]:
    if name.endswith(".g_idx"):
        yield (rng.permutation(shape[0]) // GROUP_SIZE).astype(np.int32)
        return
    for start in range(0, shape[0], 64):
        block = (min(64, shape[0] - start), shape[1])
        if name.endswith(".scales"):
            yield rng.uniform(0.001, 0.01, block).astype(np.float16)
        elif name.endswith(".qzeros"):
            yield np.full(block, 0x77777777, np.int32)
        else:
            yield rng.integers(0, 2**32, block, np.uint32)


if __name__ == "__main__":
    sys.exit(main())
