"""NumPy arrays on a CPU, side by side in one run with torch, transformers and torchao where they are installed.

python bench/cpu.py                        every section that can run
python bench/cpu.py --only model,layer     these sections
python bench/cpu.py --clock cpu --cores 1  seconds of processor, one thread each: on a machine that others use

what      model: the carried model in float32, tokens x sequences. layer: the seven products of a layer of Llama-7B,
          random 4-bit weights. dequantize, codec: on one core
ours      median of this library's milliseconds
theirs    median of the other's, each repetition taken right after one of ours
ratio     median of theirs / ours, a repetition at a time: how many times quicker this library is
goal      the least ratio wanted
check     ok: the results agree, and the ratio reaches its goal. `below` where it does not, which is no error; FAIL
          where results differ, and exit status 1
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
from harness.flags import CARRIED, at_least, names
from harness.report import Column, Table, header, write_json
from threadpoolctl import threadpool_limits

import cutpq as cq
from cutpq.ops.engine import threads
from cutpq.ops.engine.weight import EngineWeight
from cutpq.ops.gemm import matmul, prepare
from cutpq.ranks.alone import SelfCommunicator

Row = dict[str, Any]
Run = Callable[[], Any]

TABLE = Table(
    (
        Column("what", "what", 34),
        Column("other", "against", 14),
        Column("ours", "ours_ms", 9, ".2f"),
        Column("theirs", "theirs_ms", 10, ".2f"),
        Column("ratio", "ratio", 6, ".2f"),
        Column("goal", "goal", 5, ".2f"),
        Column("check", "check", 6),
    )
)

# (K, N) of the products of a layer of Llama-7B: q, k and v side by side, the output, gate and up, and down.
LAYER = ((4096, 3 * 4096), (4096, 4096), (4096, 2 * 11008), (11008, 4096))


class Bench:
    """What the sections share: the clock, how often, and the rows."""

    def __init__(self, clock: str, repetitions: int):
        self.clock = time.process_time if clock == "cpu" else time.perf_counter
        self.repetitions = repetitions
        self.rows: list[Row] = []

    def compare(self, what: str, other: str, ours: Run, theirs: Run, goal: float, agrees: bool = True) -> None:
        """A row of two runs that are timed in turns; times are in ms, and one run of each is not counted."""
        ours(), theirs()
        pairs = [(self.time_ms(ours), self.time_ms(theirs)) for _ in range(self.repetitions)]
        ratio = statistics.median(b / a for a, b in pairs)
        mine, other_ms = (statistics.median(side) for side in zip(*pairs, strict=True))
        self.add(what, other, mine, other_ms, ratio, goal, agrees)

    def add(self, what: str, other: str, ours: float, theirs: float, ratio: float, goal: float, agrees: bool) -> None:
        """Print a row and keep it."""
        check = "FAIL" if not agrees else "ok" if ratio >= goal else "below"
        row = dict(what=what, other=other, ours=ours, theirs=theirs, ratio=ratio, goal=goal, check=check)
        self.rows.append(row)
        print(TABLE.line(row), flush=True)

    def time_ms(self, run: Run) -> float:
        """One run, after a pause in which the other library's threads stop spinning."""
        time.sleep(0.02)
        start = self.clock()
        run()
        return (self.clock() - start) * 1e3

    def median_ms(self, run: Run) -> float:
        """The median of several runs."""
        run()
        return statistics.median(self.time_ms(run) for _ in range(self.repetitions))


def optional(name: str) -> ModuleType | None:
    """A library that may be missing; then a line says what is left out."""
    try:
        return __import__(name)
    except ImportError:
        print(f"# {name} is not installed: rows against it are left out")
        return None


@contextmanager
def busy_core() -> Iterator[None]:
    """Another process that computes all the time."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


# ---- sections


def model(bench: Bench) -> None:
    """Prefill and decode of the carried model against transformers; prefill again beside a busy process."""
    ours = cq.load_model(CARRIED, SelfCommunicator(), dtype="float32")
    tokens = np.load(CARRIED / "eval_tokens.npy").reshape(-1)[: 8 * 512].astype(np.int64).reshape(8, 512)
    prefill = prefilled(ours, tokens[:1])
    torch, transformers = optional("torch"), optional("transformers")
    if torch is not None and transformers is not None:
        theirs = of_transformers(torch, transformers)
        threads_before = torch.get_num_threads()
        torch.set_num_threads(threads.limit())
        with torch.inference_mode():
            against_transformers(bench, ours, theirs, torch, tokens)
        torch.set_num_threads(threads_before)
    quiet = bench.median_ms(prefill)
    with busy_core():
        busy = bench.median_ms(prefill)
    bench.add("prefill 512x1, beside a busy process", "quiet / 3", busy, 3 * quiet, 3 * quiet / busy, 1, True)


def against_transformers(bench: Bench, ours: cq.Transformer, theirs: Any, torch: ModuleType, tokens: Any) -> None:
    """Rows of prefill, and of decode steps after it, for one sequence and for eight."""
    for batch, goal in ((1, 0.9), (8, 0.9)):
        ids = torch.from_numpy(tokens[:batch])
        mine = prefilled(ours, tokens[:batch])()
        want = theirs(ids).logits.reshape(mine.shape).numpy()
        agrees = bool(np.abs(mine - want).max() <= 1e-4 * np.abs(want).max())
        what, run = f"prefill 512x{batch}", prefilled(ours, tokens[:batch])
        bench.compare(what, "transformers", run, partial(theirs, ids), goal, agrees)
    for batch in (1, 8):
        cache = ours.new_cache(batch, 600)
        ours(tokens[:batch, :256], cache)
        kept = theirs(torch.from_numpy(tokens[:batch, :256]), use_cache=True).past_key_values
        step, step_of_torch = tokens[:batch, 256:257], torch.from_numpy(tokens[:batch, 256:257])

        def decode() -> None:
            ours(step, cache)  # noqa: B023  called before the loop goes on

        def decode_torch() -> None:
            theirs(step_of_torch, past_key_values=kept, use_cache=True)  # noqa: B023

        bench.compare(f"decode, {batch} sequence{'s' * (batch > 1)}", "transformers", decode, decode_torch, 1.5)


def prefilled(model: cq.Transformer, tokens: np.ndarray) -> Run:
    """A run of these tokens into an empty cache; returns the logits."""
    cache = model.new_cache(*tokens.shape)

    def run() -> np.ndarray:
        cache.lengths[:] = 0
        return model(tokens, cache)

    return run


def of_transformers(torch: ModuleType, transformers: ModuleType) -> Any:
    """The carried model in transformers, float32, with the weights that cq.dequantize gives."""
    ckpt = cq.open_checkpoint(CARRIED)
    config = transformers.AutoConfig.from_pretrained(CARRIED)
    del config.quantization_config
    theirs = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    weights = {}
    for name in theirs.state_dict():
        module = name.removesuffix(".weight")
        quantized = module in ckpt.weights()
        value = cq.dequantize(ckpt.weight(module)).T if quantized else ckpt.tensor(name)
        weights[name] = torch.from_numpy(np.ascontiguousarray(value, np.float32))
    theirs.load_state_dict(weights)
    return theirs.eval()


def layer(bench: Bench) -> None:
    """A Llama-7B layer's products: at M = 512 against the machine's sgemm, at M = 1 against its read bandwidth."""
    weights = [prepare(random_weight_of(K, N), np) for K, N in LAYER]
    rng = np.random.default_rng(0)
    xs = {K: rng.standard_normal((512, K)).astype(np.float32) for K in {K for K, _ in LAYER}}
    flops = 2 * sum(K * N for K, N in LAYER)
    gflops = sgemm_gflops(bench)
    for M, goal in ((512, 0.8), (16, 0.0), (1, 0.0)):
        run = products(weights, xs, M)
        ms = bench.median_ms(run)
        best = M * flops / gflops / 1e6
        bench.add(f"layer M={M}", f"sgemm {gflops:.0f} GF/s", ms, best, best / ms, goal, True)
    stored = sum(4 * w.K * w.N for w in weights if isinstance(w, EngineWeight))
    bandwidth = read_gbytes(bench)
    ms = bench.median_ms(products(weights, xs, 1))
    best = stored / bandwidth / 1e6
    bench.add("layer M=1, float32 weights read", f"read {bandwidth:.0f} GB/s", ms, best, best / ms, 0.5, True)


def random_weight_of(K: int, N: int) -> cq.QuantWeight:
    """4 bits, groups of 128, sorted."""
    rng = np.random.default_rng(K + N)
    G = K // 128
    return cq.QuantWeight(
        codes=rng.integers(0, 16, (K, N), np.uint8),
        scales=rng.uniform(0.5, 1.5, (G, N)).astype(np.float16) / np.float16(64),
        zeros=np.full((G, N), 8, np.uint8),
        g_idx=(np.arange(K) // 128).astype(np.int32),
        bits=4,
        group_size=128,
    )


def products(weights: list[Any], xs: dict[int, np.ndarray], M: int) -> Run:
    """One product with each weight."""
    return lambda: [matmul(xs[w.K][:M], w) for w in weights]


def sgemm_gflops(bench: Bench) -> float:
    """What NumPy's BLAS reaches on all cores: 512 tokens, a square weight."""
    x, w = np.ones((512, 4096), np.float32), np.ones((4096, 4096), np.float32)
    with threadpool_limits(threads.limit(), "blas"):
        return 2 * 512 * 4096 * 4096 / bench.median_ms(lambda: x @ w) / 1e6


def read_gbytes(bench: Bench) -> float:
    """What all cores read of memory together: maxima over 512 MB."""
    x = np.ones((64, 1 << 21), np.float32)  # zeros would all be one page of memory
    return x.nbytes / bench.median_ms(lambda: threads.each(lambda row: x[row].max(), range(64))) / 1e6


def dequantize(bench: Bench) -> None:
    """cq.dequantize against the formula in torch, and its rate, on one core."""
    w = random_weight_of(4096, 4096)
    ours = lambda: cq.dequantize(w)  # noqa: E731
    with one_core():
        rate = 4096 * 4096 / bench.median_ms(ours) / 1e3
        bench.add("dequantize 4 bits", "500 M/s", 4096**2 / rate / 1e3, 4096**2 / 5e5, rate / 500, 1, True)
        torch = optional("torch")
        if torch is None:
            return
        torch.set_num_threads(1)
        codes, scales, zeros, g_idx = (torch.from_numpy(a) for a in (w.codes, w.scales, w.zeros, w.g_idx))
        rows = g_idx.long()

        def theirs() -> Any:
            difference = codes.short() - zeros.short()[rows]
            return (difference.float() * scales.float()[rows]).half()

        agrees = bool(np.array_equal(theirs().numpy(), ours()))
        bench.compare("dequantize 4 bits", "torch", ours, theirs, 3, agrees)


def codec(bench: Bench) -> None:
    """Encode and decode of 4 Mi numbers against torchao's conversion to MX formats, on one core."""
    torch = optional("torch")
    torchao = optional("torchao") if torch is not None else None
    x = np.random.default_rng(0).standard_normal((1024, 4096)).astype(np.float32)
    with one_core():
        for name in ("mxfp4", "mxfp8-e4m3", "int4-b8"):
            c = cq.codec(name)
            wire = c.encode(x)
            pairs = of_torchao(torch, torchao, name, x) if torch is not None and torchao is not None else None
            for what, run, goal in (("encode", partial(c.encode, x), 2), ("decode", partial(c.decode, wire), 1)):
                if pairs is not None:
                    bench.compare(f"{what} {name}", "torchao", run, pairs[what], goal)
                else:
                    ms = bench.median_ms(run)
                    best = x.size / 1e5  # a hundred million numbers a second
                    bench.add(f"{what} {name}", "100 M/s", ms, best, best / ms, 0, True)


def of_torchao(torch: ModuleType, torchao: ModuleType, name: str, x: np.ndarray) -> dict[str, Run] | None:
    """encode and decode by torchao's MX conversion; None for a format that it does not have."""
    from torchao.prototype.mx_formats.mx_tensor import to_dtype, to_mx

    kinds = {"mxfp4": torch.float4_e2m1fn_x2, "mxfp8-e4m3": torch.float8_e4m3fn}
    if name not in kinds:
        return None
    torch.set_num_threads(1)
    kind, data = kinds[name], torch.from_numpy(x)
    scales, elements = to_mx(data, kind, 32)
    return {
        "encode": lambda: to_mx(data, kind, 32),
        "decode": lambda: to_dtype(elements, scales, kind, 32, torch.float32),
    }


@contextmanager
def one_core() -> Iterator[None]:
    """This library on one thread."""
    threads.use_one_for_blas()
    with threads.sharing_cores(threads.cores()):
        yield


SECTIONS = {"model": model, "layer": layer, "dequantize": dequantize, "codec": codec}


def main(argv: list[str] | None = None) -> int:
    """Run the sections, print the table, write what was asked for; 1 where results differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=names(SECTIONS), default=tuple(SECTIONS), help="sections, default all")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="which seconds (wall)")
    parser.add_argument("--cores", type=at_least(1), default=threads.cores(), help="threads of each library (all)")
    parser.add_argument("-n", "--repetitions", type=at_least(1), default=15, help="of each time (15)")
    parser.add_argument("--json", metavar="FILE", help="also write a line a row")
    args = parser.parse_args(argv)

    threads.share_cores(max(1, threads.cores() // args.cores))
    print(
        "\n".join([*header(SelfCommunicator()), f"# threads: {threads.limit()}, clock: {args.clock}", TABLE.heading()])
    )
    bench = Bench(args.clock, args.repetitions)
    for section in args.only:
        SECTIONS[section](bench)
    if args.json:
        write_json(args.json, bench.rows)
    return 1 if any(row["check"] == "FAIL" for row in bench.rows) else 0


if __name__ == "__main__":
    sys.exit(main())
