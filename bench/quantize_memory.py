r"""Memory that `cutpq quantize` takes for a large model: two layers of its shapes, random weights, few tokens.

    python bench/quantize_memory.py                                       Llama-2-70B, one rank
    python bench/quantize_memory.py --ranks 8                             one of eight ranks, whose peers are silent
    python bench/quantize_memory.py --divide 4 --modules 'layers\.0\.'    a 16th of the memory, in a 64th of the time

The model is written to --work (3.5 GB for Llama-2-70B) and stays there for the next run. It is quantized in a process
of its own, whose largest resident memory is told: arrays, and those pages of the model's files that are in memory. Of
several ranks the first runs, and what the others would send is zero, so that sums and weights are not those of eight.

divide    of hidden size, intermediate size and heads: matrices are smaller by its square, and so are the pieces in
          which the quantizer sums and reads
peak_gb   10^9 bytes; a line for each module tells the largest since the one before, which needs Linux's clear_refs
cpu_s     of the process, user's and system's together
projected peak_gb at full size: what is above the memory of the process before it began, times the square of --divide
ended     whether the run came to its end within --limit seconds; if not, the peak is that until then
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
from harness.flags import at_least
from harness.report import Column, Table, header, write_json
from models.random_model import RandomModel
from models.shapes import TRANSFORMERS
from models.silent import SilentCommunicator
from safetensors.numpy import save_file

import cutpq as cq
from cutpq.cost.transformer import ModelShape
from cutpq.ops.engine import memory
from cutpq.quantization import activations, factor, float_model, streams
from cutpq.ranks.alone import SelfCommunicator

LAYERS, VOCABULARY = 2, 1024

# A file in --work to which the process adds a line after each module.
PHASES = "phases.jsonl"

TABLE = Table(
    (
        Column("model", "model", 14),
        Column("divide", "divide", 6),
        Column("ranks", "ranks", 5),
        Column("modules", "modules", 24),
        Column("sweeps", "sweeps", 6),
        Column("tokens", "tokens", 6),
        Column("seconds", "seconds", 7, ".0f"),
        Column("cpu_s", "cpu_s", 6, ".0f"),
        Column("peak_gb", "peak_gb", 7, ".3f"),
        Column("projected_gb", "projected", 9, ".1f"),
        Column("ended", "ended", 5),
    )
)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    print("\n".join(header(SelfCommunicator())))
    src = args.work / f"{args.model}-{args.divide}"
    if not (src / "config.json").exists():
        write_model(src, divided(TRANSFORMERS[args.model], args.divide))
    dst = args.work / "quantized"
    (args.work / PHASES).write_text("")
    shutil.rmtree(dst, ignore_errors=True)
    shutil.rmtree(dst.with_name("quantized.unfinished"), ignore_errors=True)
    spawn = multiprocessing.get_context("spawn")
    before = spawn.Value("d", 0.0)
    child = spawn.Process(target=quantize, args=(src, dst, args, before))
    began = time.monotonic()
    child.start()
    assert child.pid is not None  # it has started
    unfinished_gb = 0.0  # peak of the phase in which it was killed
    if not wait([child.sentinel], args.limit):
        unfinished_gb = peak_resident(child.pid)
        child.kill()
    _, status, usage = os.wait4(child.pid, 0)  # of this process alone; join() would throw its usage away
    ended = status == 0
    phases = [json.loads(line) for line in (args.work / PHASES).read_text().splitlines()]
    peak_gb = max([phase["peak_gb"] for phase in phases] + [unfinished_gb])
    row = {
        "model": args.model, "divide": args.divide, "ranks": args.ranks, "modules": args.modules or "all",
        "sweeps": args.sweeps, "tokens": args.sequences * args.length, "seconds": time.monotonic() - began,
        "cpu_s": usage.ru_utime + usage.ru_stime, "peak_gb": peak_gb,
        "projected_gb": before.value + (peak_gb - before.value) * args.divide**2, "ended": "yes" if ended else "no",
        "phases": phases,
    }  # fmt: skip
    print("\n".join([TABLE.heading(), TABLE.line(row)]))
    if args.json:
        write_json(args.json, [row])
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=TRANSFORMERS, default="llama-2-70b", help="(llama-2-70b)")
    parser.add_argument("--divide", type=int, choices=(1, 2, 4, 8), default=1, metavar="N", help="1, 2, 4 or 8 (1)")
    parser.add_argument("--ranks", type=int, choices=(1, 2, 4, 8), default=1, help="(1)")
    parser.add_argument("--modules", metavar="REGEX", help="as in cutpq quantize")
    parser.add_argument("--sweeps", type=at_least(0), default=4, metavar="N", help="as in cutpq quantize (4)")
    parser.add_argument("--sequences", type=at_least(8), default=8, metavar="N", help="of calibration (8)")
    parser.add_argument("--length", type=at_least(2), default=64, metavar="N", help="of a sequence (64)")
    parser.add_argument("--limit", type=at_least(1), default=900, metavar="S", help="seconds, then it is killed (900)")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="for the model and the result")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the row")
    return parser.parse_args(argv)


def divided(shape: ModelShape, by: int) -> ModelShape:
    """The same shape, as much narrower."""
    return replace(
        shape, hidden=shape.hidden // by, heads=shape.heads // by, kv_heads=max(1, shape.kv_heads // by),
        intermediate=shape.intermediate // by,
    )  # fmt: skip


def write_model(folder: Path, shape: ModelShape) -> None:
    """Two layers in a Hugging Face folder, a file for each tensor: one at a time is in memory."""
    model = RandomModel(shape, LAYERS, bits=16)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((1 << 20) + 7).astype(np.float16)
    weight_map = {}
    for number, tensor in enumerate(model.tensors()):
        size = model.tensor_shape(tensor)
        if tensor in ("model.embed_tokens.weight", "lm_head.weight"):
            size = (VOCABULARY, size[1])
        scale = np.float16(1 / np.sqrt(size[-1]))
        values = np.ones(size, np.float16) if len(size) == 1 else np.resize(np.roll(noise, number) * scale, size)
        weight_map[tensor] = f"model-{number:05}.safetensors"
        save_file({tensor: values}, folder / weight_map[tensor])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config = model.config | {"vocab_size": VOCABULARY, "rms_norm_eps": 1e-5, "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))


def quantize(src: Path, dst: Path, args: argparse.Namespace, before: Any) -> None:
    """What the process does whose memory is measured; `before` becomes what it had at the beginning."""
    square = np.ones((1024, 1024), np.float32)
    square @ square  # BLAS takes buffers of its own, whatever the sizes
    before.value = peak_resident(os.getpid())
    streams._SUM_BYTES //= args.divide**2
    float_model._SHOWN_BYTES //= args.divide**2
    activations._PIECE_BYTES //= args.divide**2
    memory._OWN_BYTES //= args.divide**2
    memory._UNUSED_BYTES //= args.divide**2
    factor._PIECE //= args.divide**2
    alone = SelfCommunicator()
    comm: Any = alone if args.ranks == 1 else SilentCommunicator(args.ranks, alone)
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, (args.sequences, args.length))

    def tell(name: str, loss: float = 0, done: int = 0, total: int = 0) -> None:
        peak_gb = peak_resident(os.getpid())
        forget_peak()
        print(f"# {peak_gb:7.3f} GB  {name}", flush=True)
        with (args.work / PHASES).open("a") as file:
            file.write(json.dumps({"until": name, "peak_gb": peak_gb}) + "\n")

    forget_peak()
    cq.quantize(src, dst, tokens, comm, modules=args.modules, sweeps=args.sweeps, progress=tell)
    tell("the end")


def peak_resident(pid: int) -> float:
    """Largest resident memory of the process since `forget_peak`, 10^9 bytes.

    getrusage's ru_maxrss would not do: it also counts the process that started this one.
    """
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e9


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    sys.exit(main())
