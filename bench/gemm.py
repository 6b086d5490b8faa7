"""gemm_w4a16 on a GPU: every shape of four models' MLPs, in plain order and act-ordered, timed and checked.

    python bench/gemm.py --model llama-70b --tp 1,8      needs a GPU
    python bench/gemm.py --all                           every model, tp and M
    python bench/gemm.py --predict                       no GPU: what it should take on an H200, an H100 and an A100
    python bench/gemm.py --calibrate                     the same formulas against published times of vLLM's Marlin
    python bench/gemm.py --static                        no GPU: instructions of the main loop, beside those of peers
    CUTPQ_HOST_KERNELS=1 python bench/gemm.py --counted  no GPU: the main loop's work, counted as it is executed
    python bench/gemm.py --bits 8 ...                    of 8-bit weights; --predict, --static and --counted, too
    python bench/gemm.py --sweep                         from how many tokens on to dequantize first, on this GPU
    CUTPQ_HOST_KERNELS=1 python bench/gemm.py --smoke    no GPU: a tiny product through the kernel on the CPU

A row is one rank's product at M tokens under a scheme:
plain      groups one behind the other, as if the weight had never been act-ordered
tp-aware   act-ordered, sorted before it is shared out; whatever writes x writes it in this order
local      a rank's rows in disk order, sorted on the rank: all groups' scales, and x gathered by a kernel of its own
           where rows are shared out (its time is in the row)
unordered  disk order; the kernel looks a scale up for every row

time_us   one product, of a replayed CUDA graph over copies of the weight four times the L2's size together; from
          gemm_config.dequant_from tokens on of queued calls, since CuPy does not capture cuBLAS
GB_s      codes, scales, g_idx, x and y, each once; share: of what a copy reaches in this run
cublas    fp16 cupy.matmul of the same shape, queued; ratio: its time over this one's
check     sampled columns of y against float64, element by element (bench/truth/reference.py gemm_bound)

--static  instructions of one warp for each 16-byte load of codes, by class (predict/machine_code.py); shape is warps
          along N x along K x blocks on a multiprocessor, in_flight_KB the most codes under way on a multiprocessor
--counted PTX instructions that the software device executed for the same (predict/executed.py); read: bytes of global
          memory for each of codes; coalesced: sectors that these bytes need over those that moved; conflicts: passes
          through shared memory that bank conflicts cost. check: the tensor core instructions are as many as in the
          machine code, all sectors are whole, there is no conflict
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
from harness.flags import names, positive_numbers
from harness.gpu_clock import Ceilings, NoGpu, ceilings, gpu_module, graph_us, noise, queued_us
from harness.report import Column, Table, header, progress, write_json
from models.gemm_layers import GROUP_SIZE, SCHEMES, Layer, layers
from models.shapes import MODELS
from predict import calibrate, gemm_page
from predict.executed import IN_NO_BRANCH, PTX, loop_counts
from predict.gemm import MACHINES, Machine, library_us, predict
from predict.machine_code import CLASSES, DisassemblerMissing, unit_code
from truth.reference import gemm_bound, outside, unit_roundoff

from cutpq.array import ceil_div, to_numpy
from cutpq.kernels import load as kernels
from cutpq.kernels import nvrtc
from cutpq.kernels.compile import compile_kernel
from cutpq.kernels.config import FLOAT16
from cutpq.kernels.source import KernelError, source_digest
from cutpq.ops import formulas as ref
from cutpq.ops import gemm_config
from cutpq.ops.gather import gather_columns
from cutpq.ops.gemm import matmul
from cutpq.ops.gemm_config import GemmConfig
from cutpq.ranks.alone import SelfCommunicator
from cutpq.shipped import shipped
from cutpq.weights.pack import PackedWeight, pack
from cutpq.weights.permutation import sort_groups
from cutpq.weights.weight import QuantWeight

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096)
SWEEP = (128, 192, 256, 320, 384, 448, 512, 640, 768, 1024, 1280, 1536, 2048)
TPS = (1, 2, 4, 8)
TOKENS_OF_KERNEL = (1, 8, 16, 32, 64)
DEFAULT_MODEL, DEFAULT_TOKENS = ("llama-70b",), (1, 16, 64, 256)
CHECKED_COLUMNS, CHECKED_TOKENS = 64, 16
LEAST_CALLS = 8
TINY = Layer("tiny", "down", tp=2, K=256, N=192, total_K=512)

SHAPE_COLUMNS = (
    Column("model", "model", 11),
    Column("layer", "layer", 7),
    Column("tp", "tp", 2),
    Column("bits", "bits", 4),
    Column("K", "K", 5),
    Column("N", "N", 5),
    Column("M", "M", 4),
    Column("scheme", "scheme", 9),
)
TABLE = Table(
    (
        *SHAPE_COLUMNS,
        Column("time_us", "time_us", 9, ".1f"),
        Column("GB_s", "GB_s", 6, ".0f"),
        Column("share", "share", 5, ".2f"),
        Column("cublas_us", "cublas_us", 9, ".1f"),
        Column("ratio", "ratio", 5, ".2f"),
        Column("launch_us", "launch_us", 9, ".2f"),
        Column("max_err", "max_err", 8, ".1e"),
        Column("check", "check", 5),
    )
)
PREDICTED_TABLE = Table(
    (
        Column("machine", "machine", 7),
        *SHAPE_COLUMNS,
        Column("time_us", "predicted_us", 12, ".1f"),
        Column("share", "share", 5, ".2f"),
        Column("cublas_us", "cublas_us", 9, ".1f"),
        Column("ratio", "ratio", 5, ".2f"),
        Column("per_load", "per_load", 8, ".0f"),
        Column("bound", "bound", 13),
    )
)

COUNTS_TABLE = Table(
    (
        Column("kernel", "kernel", 15),
        Column("tokens", "tokens", 6, ".0f"),
        Column("shape", "shape", 6),
        Column("per_load", "per_load", 8, ".1f"),
        *(Column(name, name, max(4, len(name)), ".1f") for name in (*CLASSES, "address")),
        Column("half_rate", "half_rate", 9, ".1f"),
        Column("registers", "registers", 9, ".0f"),
        Column("warps", "warps", 5, ".0f"),
        Column("in_flight_kb", "in_flight_KB", 12, ".0f"),
        Column("spill_bytes", "spill_B", 7, ".0f"),
    )
)
COUNTED_TABLE = Table(
    (
        Column("M", "tokens", 6),
        Column("per_load", "per_load", 8, ".1f"),
        Column("ptx_per_load", "ptx_per_load", 12, ".1f"),
        *(Column(name, name, 6, ".2f") for name in PTX),
        Column("read_bytes", "read", 5, ".2f"),
        Column("coalesced", "coalesced", 9, ".3f"),
        Column("conflicts", "conflicts", 9),
        Column("check", "check", 5),
    )
)
SWEEP_TABLE = Table(
    (
        *SHAPE_COLUMNS,
        Column("kernel_us", "kernel_us", 9, ".1f"),
        Column("dequant_us", "dequant_us", 10, ".1f"),
        Column("check", "check", 5),
    )
)

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, write what was asked for; 1 where a check fails, 2 without a GPU."""
    args = parse(argv)
    if args.calibrate:
        return print_calibration(args)
    if args.predict or args.static or args.counted:
        try:
            return (print_prediction if args.predict else print_counts if args.static else print_executed)(args)
        except (KernelError, DisassemblerMissing, ImportError) as error:
            print(f"gemm.py: {error}", file=sys.stderr)
            return 2
    try:
        xp = np if args.smoke and kernels.usable(np) else gpu_module()
    except NoGpu as error:
        print(
            f"gemm.py: measuring {error}; --predict works without, and --smoke with CUTPQ_HOST_KERNELS=1",
            file=sys.stderr,
        )
        return 2
    device = None if xp is np else int(xp.cuda.runtime.getDevice())
    comm = SelfCommunicator("one GPU" if device is not None else "smoke", xp, device)
    tops = ceilings(xp, args.smoke)
    wanted = [replace(TINY, bits=args.bits)] if args.smoke else layers(args.model, args.tp, args.bits)
    if args.sweep:
        print("\n".join([*header(comm), *described(tops)]), flush=True)
        return print_sweep(wanted, args, tops, xp)
    print("\n".join([*header(comm), *described(tops), TABLE.heading()]), flush=True)
    rows = []
    with progress(len(wanted), "gemm", comm) as bar:
        for layer in wanted:
            for row in measure(layer, args.m, args.schemes, tops, xp):
                print(TABLE.line(row), flush=True)
                rows.append(row)
            if args.json:
                write_json(args.json, rows)  # after each layer: a later shape may fail
            bar.update()
    return 1 if any(row["check"] != "ok" for row in rows) else 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Flags, with the defaults that depend on each other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--predict", action="store_true", help="counted, not measured; needs NVRTC and nvdisasm")
    what.add_argument("--calibrate", action="store_true", help="predicted against published times of a peer")
    what.add_argument("--static", action="store_true", help="machine code of every shipped configuration, and of peers")
    what.add_argument("--counted", action="store_true", help="the main loop's work, as the software device executes it")
    what.add_argument("--sweep", action="store_true", help="find the tokens from which dequantizing first is faster")
    parser.add_argument("--smoke", action="store_true", help="a tiny shape, also on the CPU: does the bench work?")
    parser.add_argument("--model", type=names(tuple(MODELS)), help=f"of {', '.join(MODELS)}; default llama-70b")
    parser.add_argument("--tp", type=positive_numbers, default=TPS, metavar="TP,...", help="default 1,2,4,8")
    parser.add_argument("--m", type=positive_numbers, metavar="M,...", help="tokens; default 1,16,64,256")
    parser.add_argument("--bits", type=int, choices=(4, 8), default=4, help="of a code (4; those of 2 and 3 take 4)")
    parser.add_argument("--schemes", type=names(SCHEMES), default=SCHEMES, help=f"of {', '.join(SCHEMES)}")
    parser.add_argument("--all", action="store_true", help="every model, and M from 1 to 4096")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write one object a row")
    parser.add_argument("--page", action="store_true", help="with --predict: the tables of the results page")
    parser.add_argument("--arch", choices=("sm_80", "sm_90a"), default="sm_90a", help="of --static (sm_90a)")
    args = parser.parse_args(argv)
    args.model = args.model or (tuple(MODELS) if args.all else DEFAULT_MODEL)
    tokens = ((args.smoke, (1, 9)), (args.counted, TOKENS_OF_KERNEL), (args.sweep, SWEEP), (args.all, TOKENS))
    args.m = args.m or next((m for asked, m in tokens if asked), DEFAULT_TOKENS)
    return args


def described(tops: Ceilings) -> list[str]:
    """The ceilings of this run, as header lines."""
    if tops.copy_gb_s is None:
        return ["# the kernel runs on the CPU: times mean nothing"]
    return [
        f"# copy {tops.copy_gb_s:.0f} GB/s, empty kernel in a graph {tops.launch_us:.2f} us, "
        f"cuBLAS fp16 {tops.library_tflops:.0f} TFLOPS, L2 {tops.l2_bytes >> 20} MiB"
    ]


# --- measuring -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One rank's weight under a scheme: packed copies, the columns of x to gather first, and what it stands for."""

    copies: list[PackedWeight]
    gather: Any | None
    rows: QuantWeight

    @property
    def packed(self) -> PackedWeight:
        """The first copy, which stands for all."""
        return self.copies[0]


def measure(
    layer: Layer, tokens: Sequence[int], schemes: Sequence[str], tops: Ceilings, xp: ModuleType
) -> Iterator[Row]:
    """The rows of one layer, scheme by scheme."""
    library = library_times(layer, tokens, tops, xp)
    x = xp.asarray(np.random.default_rng(0).standard_normal((max(tokens), layer.K), np.float32).astype(np.float16))
    for scheme in schemes:
        case = make_case(layer, scheme, copies_for(layer.K * layer.N * layer.bits // 8, tops), xp)
        for M in tokens:
            x_now = x[:M, : case.rows.K]
            y, took = run(case, xp.ascontiguousarray(x_now), layer.N, xp)
            yield row(layer, scheme, case, M, took, library.get(M), tops) | judge(case, x_now, y, xp)


def run(case: Case, x: Any, N: int, xp: ModuleType) -> tuple[Any, float]:
    """The product, and the time of one in us."""
    y = xp.empty((len(x), N), np.float16)
    scratch = xp.empty_like(x)

    def product(i: int) -> None:
        columns = x if case.gather is None else gather_columns(x, case.gather, out=scratch)
        matmul(columns, case.copies[i % len(case.copies)], out=y)

    by_library = len(x) >= gemm_config.dequant_from(kernels.device(xp))
    clock: Callable[..., float] = queued_us if by_library else graph_us
    calls = 1 if xp is np else len(case.copies) if by_library else max(LEAST_CALLS, len(case.copies))
    return y, clock(product, calls, xp)


def row(layer: Layer, scheme: str, case: Case, M: int, took: float, library: float | None, tops: Ceilings) -> Row:
    """The figures of one product."""
    moved = case.packed.nbytes + 2 * M * (case.packed.K + layer.N)
    rate = moved / took / 1e3
    return {
        "model": layer.model, "layer": layer.layer, "tp": layer.tp, "bits": layer.bits, "K": case.packed.K,
        "N": layer.N, "M": M, "scheme": scheme, "time_us": took, "moved_bytes": moved, "GB_s": rate,
        "share": tops.copy_gb_s and rate / tops.copy_gb_s,
        "cublas_us": library, "ratio": library and library / took, "launch_us": tops.launch_us, "projected": False,
    }  # fmt: skip


def judge(case: Case, x: Any, y: Any, xp: ModuleType) -> Row:
    """check and max_err, of some columns and of the first and the last tokens."""
    w, M = case.rows, len(x)
    columns = np.unique(np.linspace(0, w.N - 1, CHECKED_COLUMNS).astype(np.int64))
    tokens = np.unique(np.linspace(0, M - 1, CHECKED_TOKENS).astype(np.int64))
    codes, scales, zeros, g_idx = (
        to_numpy(part) for part in (w.codes[:, columns], w.scales[:, columns], w.zeros[:, columns], w.g_idx)
    )
    weight = ref.dequant(codes, scales, zeros, g_idx, np.dtype(np.float16)).astype(np.float64)
    x64 = to_numpy(x[tokens]).astype(np.float64)
    exact = x64 @ weight
    got = to_numpy(y[tokens][:, columns])
    wrong = outside(got, exact, gemm_bound(x64, weight, exact, unit_roundoff(np.float16)))
    return {"max_err": float(np.abs(got - exact).max()), "check": "FAIL" if wrong.any() else "ok"}


def make_case(layer: Layer, scheme: str, copies: int, xp: ModuleType) -> Case:
    """Rank 0's random weight, in the order of rows that the scheme reads it in.

    `rows` has the order of x: where the rank gathers x's columns itself, that of the disk.
    """
    order = layer.g_idx()
    if scheme == "plain":
        order = np.arange(layer.total_K, dtype=np.int32) // GROUP_SIZE
    elif scheme == "tp-aware":
        order = np.sort(order, kind="stable")
    rows = random_rows(layer, order[layer.rows(scheme)], xp)
    if scheme != "local":
        return Case(copies_of(pack(rows), copies), None, rows)
    ordered, perm = sort_groups(rows)
    gather = xp.asarray(perm).astype(np.int32)
    if not layer.shares_rows:  # x arrives already permuted, as under tp-aware: no gather to time
        return Case(copies_of(pack(ordered), copies), None, ordered)
    return Case(copies_of(pack(ordered), copies), gather, rows)


def random_rows(layer: Layer, g_idx: np.ndarray, xp: ModuleType) -> QuantWeight:
    """A symmetric weight with random codes, made where it is wanted; about 1 / sqrt(K) large."""
    rng = np.random.default_rng(layer.tp)
    of_row, of_column = (xp.asarray(rng.integers(0, 2**32, n, np.uint32) | np.uint32(1)) for n in (len(g_idx), layer.N))
    codes = (of_row[:, None] * of_column[None, :] >> np.uint32(32 - layer.bits)).astype(np.uint8)
    used, g_idx = np.unique(g_idx, return_inverse=True)
    scales = (rng.uniform(0.5, 1.5, (len(used), layer.N)) / (layer.zero * layer.K**0.5)).astype(np.float16)
    return QuantWeight(
        codes=codes,
        scales=xp.asarray(scales),
        zeros=xp.full(scales.shape, layer.zero, np.uint8),
        g_idx=xp.asarray(g_idx.astype(np.int32)),
        bits=layer.bits,
        group_size=GROUP_SIZE,
    )


def copies_for(nbytes: int, tops: Ceilings) -> int:
    """Copies of a weight that together are four times the L2; two at least, so that no call finds its own traces."""
    return max(2, ceil_div(4 * tops.l2_bytes, nbytes))


def copies_of(p: PackedWeight, count: int) -> list[PackedWeight]:
    """The weight `count` times in memory."""
    return [p, *(replace(p, words=p.words.copy(), scales=p.scales.copy()) for _ in range(count - 1))]


def library_times(layer: Layer, tokens: Sequence[int], tops: Ceilings, xp: ModuleType) -> dict[int, float]:
    """The fp16 product's time for each number of tokens, its weight rotated likewise; none with NumPy."""
    if xp is np:
        return {}
    nbytes = 2 * layer.K * layer.N
    weights = [noise((layer.K, layer.N), xp) for _ in range(copies_for(nbytes, tops))]
    found = {}
    for M in tokens:
        x, y = noise((M, layer.K), xp), xp.empty((M, layer.N), np.float16)
        calls = max(LEAST_CALLS if M < 1024 else 2, len(weights))

        def product(i: int, x: Any = x, y: Any = y) -> None:
            xp.matmul(x, weights[i % len(weights)], out=y)

        found[M] = queued_us(product, calls, xp)
    return found


# --- sweeping ------------------------------------------------------------------------------------------------------


def print_sweep(wanted: Sequence[Layer], args: argparse.Namespace, tops: Ceilings, xp: ModuleType) -> int:
    """Print every layer both ways, and from how many tokens on dequantizing first is faster; 1 where a check fails."""
    print(SWEEP_TABLE.heading())
    rows = []
    for layer in wanted:
        for row in sweep(layer, args.m, tops, xp):
            rows.append(row)
            print(SWEEP_TABLE.line(row), flush=True)
    if args.json:
        write_json(args.json, rows)
    found = crossing(rows)
    if found is None:
        print(f"# up to {max(args.m)} tokens dequantizing first is not faster over all layers")
    else:
        print(f"# over all layers dequantizing first is faster from {found} tokens on: CUTPQ_DEQUANT_FROM={found}")
    return 1 if any(row["check"] != "ok" for row in rows) else 0


def sweep(layer: Layer, tokens: Sequence[int], tops: Ceilings, xp: ModuleType) -> Iterator[Row]:
    """A tp-aware rank's product by the kernel, and by dequantizing first and cuBLAS."""
    x = xp.asarray(np.random.default_rng(0).standard_normal((max(tokens), layer.K), np.float32).astype(np.float16))
    case = make_case(layer, "tp-aware", copies_for(layer.K * layer.N * layer.bits // 8, tops), xp)
    for M in tokens:
        x_now = xp.ascontiguousarray(x[:M])
        took, checks = {}, set()
        for way, dequant_from in ("kernel_us", M + 1), ("dequant_us", 1):
            with patch.object(gemm_config, "dequant_from", lambda _, tokens=dequant_from: tokens):
                y, took[way] = run(case, x_now, layer.N, xp)
            checks.add(judge(case, x_now, y, xp)["check"])
        yield {
            "model": layer.model, "layer": layer.layer, "tp": layer.tp, "bits": layer.bits, "K": case.packed.K,
            "N": layer.N, "M": M, "scheme": "tp-aware", **took, "check": "FAIL" if "FAIL" in checks else "ok",
            "projected": False,
        }  # fmt: skip


def crossing(rows: Sequence[Row]) -> int | None:
    """The least tokens from which dequantizing first takes less time, all layers together, and for all more tokens."""
    gains = {M: sum(r["kernel_us"] - r["dequant_us"] for r in rows if r["M"] == M) for M in {r["M"] for r in rows}}
    found = None
    for M in sorted(gains, reverse=True):
        if gains[M] <= 0:
            break
        found = M
    return found


# --- predicting ----------------------------------------------------------------------------------------------------


def print_prediction(args: argparse.Namespace) -> int:
    """Print the predicted table, or with --page those of bench/results/predicted_gemm.md."""
    if args.page:
        for line in gemm_page.page():
            print(line, flush=True)
        return 0
    print(f"# all predicted, nothing measured: bench/predict/gemm.py; cuda_src {source_digest()}")
    for machine in MACHINES.values():
        print(f"# {machine}")
    print(PREDICTED_TABLE.heading())
    rows = []
    for machine in MACHINES.values():
        for layer in layers(args.model, args.tp, args.bits):
            for M in args.m:
                for scheme in args.schemes:
                    rows.append(predicted_row(layer, M, scheme, machine))
                    print(PREDICTED_TABLE.line(rows[-1]))
    if args.json:
        write_json(args.json, rows)
    return 0


def print_calibration(args: argparse.Namespace) -> int:
    """Print published and predicted times of Marlin and of cuBLAS."""
    found = list(calibrate.rows())
    print("# published_us is measured by others: bench/predict/published_gemm.csv says by whom, and on what")
    print("\n".join([calibrate.TABLE.heading(), *map(calibrate.TABLE.line, found)]))
    if args.json:
        write_json(args.json, found)
    return 0


def print_counts(args: argparse.Namespace) -> int:
    """Print the instructions for each 16-byte load of codes: ours by the compiler at hand, then those of peers."""
    print(
        f"# cuda_src {source_digest()}, NVRTC {'.'.join(map(str, nvrtc.find().version))}: {args.bits} bits; "
        "peers, of 4 bits: peer_counts.csv"
    )
    print(COUNTS_TABLE.heading())
    rows = []
    for config in shipped_gemms(args.arch, args.bits):
        rows.append(counted_row(config, args.arch))
        print(COUNTS_TABLE.line(rows[-1]), flush=True)
    for peer in calibrate.facts("peer_counts.csv"):
        if (peer["arch"], args.bits) == (args.arch, 4):
            rows.append({key: text if key in ("kernel", "arch") else float(text) for key, text in peer.items()})
            print(COUNTS_TABLE.line(rows[-1] | {"shape": "-"}))
    if args.json:
        write_json(args.json, rows)
    return 1 if any(row["spill_bytes"] for row in rows if row["kernel"] == "gemm_w4a16") else 0


def print_executed(args: argparse.Namespace) -> int:
    """Print what the loop does for each 16-byte load of codes, executed, beside what stands in its machine code."""
    if not kernels.usable(np):
        raise KernelError("--counted executes the kernel on the CPU: set CUTPQ_HOST_KERNELS=1")
    print(
        f"# cuda_src {source_digest()}, NVRTC {'.'.join(map(str, nvrtc.find().version))}: {args.bits} bits, "
        f"groups of {GROUP_SIZE}, sm_90"
    )
    print(COUNTED_TABLE.heading())
    rows = []
    for M in args.m:
        rows.append(executed_row(M, args.bits))
        print(COUNTED_TABLE.line(rows[-1]), flush=True)
    if args.json:
        write_json(args.json, rows)
    return 1 if any(row["check"] != "ok" for row in rows) else 0


def executed_row(M: int, bits: int = 4) -> Row:
    """The counts at M tokens, of slabs of weights that fill all warps."""
    shallow, deep = (make_case(Layer("any", "up", 1, K, 256, K, bits), "plain", 1, np).packed for K in (1024, 2048))
    with patch.object(gemm_config, "select_gemm", wraps=gemm_config.select_gemm) as select:
        counts = loop_counts(shallow, deep, M)
    configs = {gemm_config.select_gemm(*call.args)[0] for call in select.call_args_list}
    (config,) = configs  # one for both depths, or the difference would be of two loops
    code = unit_code(config, "sm_90a")
    static = dict(code.classes)
    same = all(counts.classes[name] == static.get(name, 0) / code.loads for name in IN_NO_BRANCH)
    return {
        "M": M, "bits": bits, "per_load": code.per_load, "ptx_per_load": counts.instructions, **counts.classes,
        "read_bytes": counts.read_bytes, "coalesced": counts.coalesced, "conflicts": counts.conflicts,
        "check": "ok" if same and counts.coalesced == 1 and not counts.conflicts else "FAIL",
    }  # fmt: skip


def shipped_gemms(arch: str, bits: int = 4) -> list[GemmConfig]:
    """The shipped configurations whose loop is counted: groups of 128, one zero point, float16, no activation."""
    every = [config for name, config in shipped(int(arch[3:].rstrip("a"))) if isinstance(config, GemmConfig)]
    constants = (bits, GROUP_SIZE, 1 << (bits - 1), FLOAT16, 0)
    plain = [c for c in every if constants == (c.BITS, c.GROUP_SIZE, c.ZERO, c.DTYPE, c.ACTIVATION)]
    return sorted(plain, key=lambda c: (c.BLOCK_M, c.block_n, c.WARPS_K))


def counted_row(config: GemmConfig, arch: str) -> Row:
    """The counts of one configuration."""
    code = unit_code(config, arch)
    made = compile_kernel("gemm_w4a16", config, arch).resources
    stage_bytes = 16 * config.lane_words * config.threads
    return {
        "kernel": "gemm_w4a16", "bits": config.BITS, "arch": arch, "tokens": config.BLOCK_M,
        "per_load": code.per_load,
        "shape": f"{config.WARPS_N}x{config.WARPS_K}x{config.BLOCKS_PER_SM}",
        **{name: dict(code.classes).get(name, 0) / code.loads for name in (*CLASSES, "address")},
        "half_rate": code.integer / code.loads, "registers": made.registers,
        "warps": config.threads // 32 * config.BLOCKS_PER_SM,
        "in_flight_kb": (config.STAGES - 1) * stage_bytes * config.BLOCKS_PER_SM / 1024,
        "spill_bytes": made.spill_bytes,
    }  # fmt: skip


def predicted_row(layer: Layer, M: int, scheme: str, machine: Machine) -> Row:
    """One row of the predicted table, with the parts that it was made of."""
    p = predict(layer, M, scheme, machine)
    library = library_us(M, layer.K, layer.N, machine)
    rate = p.read_bytes / p.time_us / 1e3
    return {
        "machine": machine.name, "model": layer.model, "layer": layer.layer, "tp": layer.tp, "bits": layer.bits,
        "K": layer.K, "N": layer.N, "M": M, "scheme": scheme, "time_us": p.time_us, "GB_s": rate,
        "share": rate / machine.copy_gb_s,
        "cublas_us": library, "ratio": library / p.time_us, "per_load": p.per_load, "bound": p.bound,
        "work_us": p.work, "tail_us": p.tail_us, "fixed_us": p.fixed_us, "projected": True,
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
