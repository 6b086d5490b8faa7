"""Plants one-line bugs in the kernels, runs the tests on each, and prints how many were caught.

    python tests/simt/mutants.py [kernel ...]

A bug that no test sees is listed, and the exit status is 1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("CUTPQ_CACHE_DIR", Path.home() / ".cache" / "cutpq"))


@dataclass(frozen=True)
class Mutant:
    """In cuda_src/FILE, `old` becomes `new`."""

    name: str
    file: str
    old: str
    new: str


GEMM, PROBLEM, SPLIT = "gemm_w4a16.cu", "tile/gemm_problem.cuh", "tile/split_k.cuh"
X, W, Y = "tile/x_stage.cuh", "tile/w_stage.cuh", "tile/store_y.cuh"
FRAGMENT, GROUPED = "tile/dequant_fragment.cuh", "tile/scales_grouped.cuh"
ROWS = "tile/scales_by_row.cuh"

# The kernel, the tests that are run, and the bugs.
SUITES: dict[str, tuple[list[str], list[Mutant]]] = {
    "dequant": (
        ["test_small_kernels.py", "-k", "dequant or zero_point"],
        [
            Mutant("zero added", "dequant.cu", "int(code) - zero", "int(code) + zero"),
            Mutant("zero off by one", "dequant.cu", "int(zeros[at])}", "int(zeros[at]) - 1}"),
            Mutant("group change missed", "dequant.cu", "group != group_before", "group_before < 0"),
            Mutant("group of the next row", "dequant.cu", "? g_idx[k] :", "? g_idx[k + 1] :"),
            Mutant("group of the last row", "dequant.cu", "first_row / group_size", "(first_row + 32) / group_size"),
            Mutant("neighbour's scale", "dequant.cu", "group, n + 1, N);", "group, n, N);"),
            Mutant("no row predicate", "dequant.cu", "if (k >= K) return;", ""),
            Mutant("no column predicate", "dequant.cu", "if (j >= columns) return;", ""),
            Mutant(
                "columns swapped",
                "dequant.cu",
                "grid_left.value(left.at(i)), grid_right.value(right.at(i))",
                "grid_right.value(right.at(i)), grid_left.value(left.at(i))",
            ),
            Mutant("first column ignored", "dequant.cu", "n = first_column + j;", "n = j;"),
            Mutant("scatter ignored", "dequant.cu", "rows ? rows[k] : k", "k"),
            Mutant("crossing code cut off", "tile/codes_words.cuh", "if (shift + BITS > 32)", "if (shift + BITS > 33)"),
            Mutant("mask one bit short", "tile/codes_words.cuh", "(1u << BITS) - 1", "(1u << (BITS - 1)) - 1"),
            Mutant(
                "nibbles of k + 8 and k + 1 swapped",
                "tile/codes_fragments.cuh",
                "row % 2 * 4 + row % 16 / 8 * 2",
                "row % 2 * 2 + row % 16 / 8 * 4",
            ),
            Mutant("column half ignored", "tile/codes_fragments.cuh", "shift = n / 8 % 2 * 4;", "shift = 0;"),
            Mutant("scales in plain order", "tile/codes_fragments.cuh", "n % 8 * 8 + n / 8 % 8", "n % 64"),
        ],
    ),
    "gather_columns": (
        ["test_small_kernels.py", "-k", "gather_columns"],
        [
            Mutant("no column predicate", "gather_columns.cu", "if (j >= columns) return;", ""),
            Mutant("seven indices", "gather_columns.cu", "i < 8; i++", "i < 7; i++"),
            Mutant(
                "halves swapped",
                "gather_columns.cu",
                "row[source[2 * i]] | u32(row[source[2 * i + 1]]) << 16",
                "row[source[2 * i + 1]] | u32(row[source[2 * i]]) << 16",
            ),
            Mutant("high half lost", "gather_columns.cu", " | u32(row[source[2 * i + 1]]) << 16", ""),
            Mutant("pairs swapped", "gather_columns.cu", "pair[0], pair[1], pair[2]", "pair[1], pair[0], pair[2]"),
            Mutant("row stride of y", "gather_columns.cu", "y + (size_t)m * columns", "y + (size_t)m * K"),
            Mutant("row stride of x", "gather_columns.cu", "x + (size_t)m * K", "x + (size_t)m * columns"),
            Mutant("rows skipped", "gather_columns.cu", "m += gridDim.y", "m += gridDim.y + 1"),
            Mutant("every block all rows", "gather_columns.cu", "m = blockIdx.y", "m = 0"),
            Mutant("one row too many", "gather_columns.cu", "m < M", "m <= M"),
            Mutant("index of the next column", "gather_columns.cu", "perm[j + i]", "perm[j + i + 1]"),
        ],
    ),
    "rmsnorm_gather": (
        ["test_small_kernels.py", "-k", "rmsnorm"],
        [
            Mutant("no barrier", "rmsnorm_gather.cu", "__syncthreads();", ""),
            Mutant("warp sum one step short", "rmsnorm_gather.cu", "distance = 16", "distance = 8"),
            Mutant("one warp forgotten", "rmsnorm_gather.cu", "warp < THREADS / 32", "warp < THREADS / 32 - 1"),
            Mutant(
                "sums of one place", "rmsnorm_gather.cu", "smem_sums[threadIdx.x / 32] = value", "smem_sums[0] = value"
            ),
            Mutant(
                "epsilon outside the root",
                "rmsnorm_gather.cu",
                "squares / float(K) + epsilon)",
                "squares / float(K)) + epsilon",
            ),
            Mutant("sum instead of mean", "rmsnorm_gather.cu", "squares / float(K)", "squares"),
            Mutant("weight in the new order", "rmsnorm_gather.cu", "to_float(weight[k])", "to_float(weight[j])"),
            Mutant("scattered, not gathered", "rmsnorm_gather.cu", "y[row + j]", "y[row + k]"),
            Mutant("row ignored", "rmsnorm_gather.cu", "stage_row(smem_x, x + row, K)", "stage_row(smem_x, x, K)"),
            Mutant(
                "past the end of the row", "rmsnorm_gather.cu", "k < K; k += 8 * THREADS", "k <= K; k += 8 * THREADS"
            ),
            Mutant("seven of eight squared", "rmsnorm_gather.cu", "i < 8; i++", "i < 7; i++"),
            Mutant("tail left out", "rmsnorm_gather.cu", "j < K; j += THREADS", "j + THREADS <= K; j += THREADS"),
        ],
    ),
    # gemm_w4a16, by the tests that come to the point soonest; all of them together are run by pytest
    "gemm_w4a16: ring": (
        ["test_gemm_kernel.py", "-k", "no_race or runs_of_units"],
        [
            Mutant("no barrier in the main loop", GEMM, "    __syncthreads();  // this unit has landed", "    //"),
            Mutant("no wait", GEMM, "    cp_async_wait<STAGES - 2>();\n", ""),
            Mutant("wait for one too few", GEMM, "cp_async_wait<STAGES - 2>", "cp_async_wait<STAGES - 1>"),
            Mutant("load into the full stage", GEMM, "shared.stage(empty)", "shared.stage(full)"),
            Mutant("no commit", GEMM, "p, at);\n    cp_async_commit();\n\n", "p, at);\n\n"),
            Mutant("stage not advanced", GEMM, "full + 1 == STAGES ? 0 : full + 1", "full"),
            Mutant(
                "one unit too many",
                GEMM,
                "loader.unit.unit < end) loader.load(shared.stage(empty)",
                "loader.unit.unit <= end) loader.load(shared.stage(empty)",
            ),
            Mutant("sums not cleared", GEMM, "    clear(sums);\n    const", "    const"),
            Mutant(
                "x of the column before",
                PROBLEM,
                "if (row == p.units_k) row = 0, column++;",
                "if (row == p.units_k) row = 1, column++;",
            ),
            Mutant("w not moved to the next column", GEMM, "if (unit.row == 0) w.go_to(p, at, unit);\n    else ", ""),
            Mutant("w moved by half a unit", W, "source += BLOCK_K / 16 * 32", "source += BLOCK_K / 32 * 32"),
            Mutant("column not advanced", PROBLEM, "row = 0, column++", "row = 0"),
            Mutant("block of a unit", PROBLEM, "((unit + 1) * gridDim.x - 1)", "(unit * gridDim.x)"),
        ],
    ),
    "gemm_w4a16: sums": (
        ["test_gemm_kernel.py", "-k", "no_race or counters or runs_of_units"],
        [
            Mutant("no barrier before adding over warps", SPLIT, "__syncthreads();  // upper half stored", ""),
            Mutant("no barrier after adding over warps", SPLIT, "__syncthreads();  // added", "//"),
            Mutant("no barrier before the arrival", SPLIT, "  __syncthreads();  // sums stored\n", ""),
            Mutant("no barrier after the arrival", SPLIT, "  __syncthreads();  // number of arrivals known\n", ""),
            Mutant("weak arrival", SPLIT, "atomic_add_acq_rel", "atomic_add_relaxed"),
            Mutant("counter not reset", SPLIT, "if (threadIdx.x == 0) *counter = 0;", ""),
            Mutant(
                "last but one adds", SPLIT, "u32(shared.last - shared.first)", "u32(shared.last - shared.first - 1)"
            ),
            Mutant(
                "first block left out",
                SPLIT,
                "shared.slot(workspace, p, shared.first)[word]",
                "shared.slot(workspace, p, shared.last)[word]",
            ),
            Mutant("one slot for all", SPLIT, "p.first_unit(block) < first_unit", "0"),
            Mutant("warp left out", SPLIT, "at.warp_k < 2 * half", "at.warp_k < 2 * half - 1"),
            Mutant("sums of the first round only", SPLIT, "else set_word(sums, e, sum);", ""),
            Mutant("tokens left out", SPLIT, "word % 4 * 2 < p.M", "word % 4 * 2 + 1 < p.M"),
            Mutant("no barrier before storing y", SPLIT, "  __syncthreads();  // all sums here\n", ""),
        ],
    ),
    "gemm_w4a16: x, w, y": (
        ["test_gemm_kernel.py", "-k", "bank or ragged or gated or (every_tile and 130-float)"],
        [
            Mutant("no swizzle", X, "(i ^ m % 8)", "i"),
            Mutant(
                "other swizzle on the way in", X, "smem_x + x_chunk(m, i) + row", "smem_x + x_chunk(m ^ 1, i) + row"
            ),
            Mutant("chunks of a step swapped", X, "lane / 8 % 2;", "1 - lane / 8 % 2;"),
            Mutant("token tiles swapped", X, "lane / 16 * 8 + lane % 8", "(1 - lane / 16) * 8 + lane % 8"),
            Mutant("no token predicate", X, "p.first_token + m + row < p.M && k", "k"),
            Mutant("no column predicate on x", X, " && k + 8 * i < p.K", ""),
            Mutant("tokens of the first tile", GEMM, "int(blockIdx.y) * BLOCK_M", "0"),
            Mutant("no predicate on rows of w", W, " && k16 + step < p.tiles_k16", ""),
            Mutant("no predicate on strips", W, "strip_exists && ", ""),
            Mutant("steps of w swapped", W, "return smem_w[step * THREADS", "return smem_w[(step ^ 1) * THREADS"),
            Mutant("slab of another warp", W, "STEPS * at.warp_k", "STEPS * (at.warp_k ^ 1)"),
            Mutant("y beyond its columns", Y, "min(BLOCK_N, p.N - n)", "BLOCK_N"),
            Mutant("y beyond its tokens", Y, "min(BLOCK_M, p.M - p.first_token)", "BLOCK_M"),
            Mutant("bias of the first columns", Y, "bias[n + g]", "bias[g]"),
            Mutant("columns g and g + 8 swapped", Y, "2 * h + m % 2", "2 * (1 - h) + m % 2"),
            Mutant("gate and up swapped", Y, "silu(sum[g]) * up[g]", "silu(up[g]) * sum[g]"),
        ],
    ),
    "gemm_w4a16: weights": (
        ["test_gemm_kernel.py", "-k", "bit_for_bit or (kind_of_groups and groups_of)"],
        [
            Mutant("pairs of other rows", FRAGMENT, "i < 2 ? word : word >> 8", "i < 2 ? word : word >> 4"),
            Mutant("wrong nibble", FRAGMENT, "shifted, 0x00f000f0", "shifted, 0x0f000f00"),
            Mutant("eighth instead of sixteenth", FRAGMENT, "0x2c002c00", "0x30003000"),
            Mutant("zero of the high nibble", FRAGMENT, "zeros << 4", "zeros << 3"),
            Mutant("zero of the low nibble", FRAGMENT, "zeros | 0x64006400", "zeros | 0x64016401"),
            Mutant(
                "float16 scale cut to bfloat16",
                FRAGMENT,
                "__hfma2(difference, as_pair<Pair>(scale.high), small)",
                "__hmul2(difference, as_pair<Pair>(scale.high))",
            ),
            Mutant("zero of bfloat16", FRAGMENT, "zeros | 0x43004300", "zeros | 0x43014301"),
            Mutant("scale of the first line", GROUPED, "at.warp_k * SLAB / SCALE_ROWS", "0"),
            Mutant("group of the unit's first row", GROUPED, "k + at / ROW * SCALE_ROWS", "k"),
            Mutant(
                "no clamp to the last group",
                GROUPED,
                "min(k + at / ROW * SCALE_ROWS, p.K - 1)",
                "k + at / ROW * SCALE_ROWS",
            ),
            Mutant("scales of g and g + 8 swapped", GROUPED, "scale[2 * t + i % 2]);", "scale[2 * t + 1 - i % 2]);"),
            Mutant("zeros of g and g + 8 swapped", GROUPED, "offset_[2 * t + i % 2]", "offset_[2 * t + 1 - i % 2]"),
            Mutant("zeros of another strip", GROUPED, "column) * SIZE;", "column / SIZE) * SIZE;"),
        ],
    ),
    "gemm_w4a16: rows": (
        ["test_gemm_kernel.py", "-k", "sparse or act_order or off_the_grid or one_row or empty"],
        [
            Mutant("rows of the fragment", ROWS, "r % 2 + r / 2 * 8", "r"),
            Mutant("pair of the first rows", ROWS, "const int r = i / 2 * 2;", "const int r = 0;"),
            Mutant("columns of the pair", ROWS, "i % 2 ? 0x7632 : 0x5410", "i % 2 ? 0x5410 : 0x7632"),
            Mutant("scale of the first row for both", ROWS, "part(scale[r + 1], t)", "part(scale[r], t)"),
            Mutant("zero of the first row for both", ROWS, "t < 2 ? zero[r + 1].x", "t < 2 ? zero[r].x"),
            Mutant("zeros of another column", ROWS, "2 * t % 4 + i % 2", "2 * t % 4 + 1 - i % 2"),
            Mutant("slab judged by all but its last row", ROWS, "p.g_idx[k + SLAB - 1]", "p.g_idx[k + SLAB - 2]"),
            Mutant("unordered rows judged as ordered", ROWS, "ORDER != LOCAL || ", ""),
            Mutant("g_idx beyond its end", ROWS, "row < p.tiles_k16 * 16 ? p.g_idx[row] : 0", "p.g_idx[row]"),
            Mutant("second step as the first", "tile/mma_slab.cuh", "first_row + 16 * step", "first_row"),
            Mutant("slab of the first warp", "tile/mma_slab.cuh", "k + at.warp_k * SLAB;", "k;"),
        ],
    ),
}


def is_caught(mutant: Mutant, tests: list[str], scratch: Path) -> bool:
    """Whether a test fails on the mutated sources."""
    sources = Path(tempfile.mkdtemp(dir=scratch)) / "cuda_src"
    shutil.copytree(ROOT / "cuda_src", sources)
    text = (sources / mutant.file).read_text()
    if mutant.old not in text:
        raise SystemExit(f"{mutant.name}: {mutant.file} no longer contains {mutant.old!r}")
    (sources / mutant.file).write_text(text.replace(mutant.old, mutant.new, 1))
    environment = {**os.environ, "CUTPQ_CACHE_DIR": str(scratch), "CUTPQ_MUTATED_SOURCES": str(sources)}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=Path(__file__).parent, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1):  # no tests, or an error outside of them
        raise SystemExit(f"{mutant.name}: pytest did not run the tests\n{done.stdout}{done.stderr}")
    if "g++ refused" in done.stdout:
        raise SystemExit(f"{mutant.name}: is no bug, for it does not compile\n{done.stdout}")
    return done.returncode == 1


def main(kernels: list[str]) -> int:
    """Run the mutants of these kernels, or of all; 0 if all are caught."""
    suites = [name for name in SUITES if not kernels or name.partition(":")[0] in kernels]
    work = [(name, m, SUITES[name][0]) for name in suites for m in SUITES[name][1]]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        scratch = Path(folder)
        (scratch / "simt").mkdir()
        for runtime in (CACHE / "simt").glob("runtime-*.so"):  # need not be compiled again
            shutil.copy(runtime, scratch / "simt")
        caught = list(pool.map(lambda w: is_caught(w[1], w[2], scratch), work))
    for (kernel, mutant, _), seen in zip(work, caught, strict=True):
        if not seen:
            print(f"not caught: {kernel}: {mutant.name}")
    print(f"{sum(caught)}/{len(caught)} planted bugs caught")
    return 0 if all(caught) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
