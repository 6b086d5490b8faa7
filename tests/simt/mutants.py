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


# The kernel, the tests that are run, and the bugs.
SUITES: dict[str, tuple[list[str], list[Mutant]]] = {
    "dequant": (["test_small_kernels.py", "-k", "dequant or zero_point"], [
        Mutant("zero added", "dequant.cu", "int(code) - zero", "int(code) + zero"),
        Mutant("zero off by one", "dequant.cu", "int(zeros[at])}", "int(zeros[at]) - 1}"),
        Mutant("group change missed", "dequant.cu", "group != group_before", "group_before < 0"),
        Mutant("group of the next row", "dequant.cu", "? g_idx[k] :", "? g_idx[k + 1] :"),
        Mutant("group of the last row", "dequant.cu", "first_row / group_size", "(first_row + 32) / group_size"),
        Mutant("neighbour's scale", "dequant.cu", "group, n + 1, N);", "group, n, N);"),
        Mutant("no row predicate", "dequant.cu", "if (k >= K) return;", ""),
        Mutant("no column predicate", "dequant.cu", "if (j >= columns) return;", ""),
        Mutant("columns swapped", "dequant.cu", "grid_left.value(left.at(i)), grid_right.value(right.at(i))",
               "grid_right.value(right.at(i)), grid_left.value(left.at(i))"),
        Mutant("first column ignored", "dequant.cu", "n = first_column + j;", "n = j;"),
        Mutant("scatter ignored", "dequant.cu", "rows ? rows[k] : k", "k"),
        Mutant("crossing code cut off", "tile/codes_words.cuh", "if (shift + BITS > 32)", "if (shift + BITS > 33)"),
        Mutant("mask one bit short", "tile/codes_words.cuh", "(1u << BITS) - 1", "(1u << (BITS - 1)) - 1"),
        Mutant("nibbles of k + 8 and k + 1 swapped", "tile/codes_fragments.cuh",
               "row % 2 * 4 + row % 16 / 8 * 2", "row % 2 * 2 + row % 16 / 8 * 4"),
        Mutant("column half ignored", "tile/codes_fragments.cuh", "shift = n / 8 % 2 * 4;", "shift = 0;"),
        Mutant("scales in plain order", "tile/codes_fragments.cuh", "n % 8 * 8 + n / 8 % 8", "n % 64"),
    ]),
    "gather_columns": (["test_small_kernels.py", "-k", "gather_columns"], [
        Mutant("no column predicate", "gather_columns.cu", "if (j >= columns) return;", ""),
        Mutant("seven indices", "gather_columns.cu", "i < 8; i++", "i < 7; i++"),
        Mutant("halves swapped", "gather_columns.cu", "row[source[2 * i]] | u32(row[source[2 * i + 1]]) << 16",
               "row[source[2 * i + 1]] | u32(row[source[2 * i]]) << 16"),
        Mutant("high half lost", "gather_columns.cu", " | u32(row[source[2 * i + 1]]) << 16", ""),
        Mutant("pairs swapped", "gather_columns.cu", "pair[0], pair[1], pair[2]", "pair[1], pair[0], pair[2]"),
        Mutant("row stride of y", "gather_columns.cu", "y + (size_t)m * columns", "y + (size_t)m * K"),
        Mutant("row stride of x", "gather_columns.cu", "x + (size_t)m * K", "x + (size_t)m * columns"),
        Mutant("rows skipped", "gather_columns.cu", "m += gridDim.y", "m += gridDim.y + 1"),
        Mutant("every block all rows", "gather_columns.cu", "m = blockIdx.y", "m = 0"),
        Mutant("one row too many", "gather_columns.cu", "m < M", "m <= M"),
        Mutant("index of the next column", "gather_columns.cu", "perm[j + i]", "perm[j + i + 1]"),
    ]),
    "rmsnorm_gather": (["test_small_kernels.py", "-k", "rmsnorm"], [
        Mutant("no barrier", "rmsnorm_gather.cu", "__syncthreads();", ""),
        Mutant("warp sum one step short", "rmsnorm_gather.cu", "distance = 16", "distance = 8"),
        Mutant("one warp forgotten", "rmsnorm_gather.cu", "warp < THREADS / 32", "warp < THREADS / 32 - 1"),
        Mutant("sums of one place", "rmsnorm_gather.cu", "smem_sums[threadIdx.x / 32] = value",
               "smem_sums[0] = value"),
        Mutant("epsilon outside the root", "rmsnorm_gather.cu", "squares / float(K) + epsilon)",
               "squares / float(K)) + epsilon"),
        Mutant("sum instead of mean", "rmsnorm_gather.cu", "squares / float(K)", "squares"),
        Mutant("weight in the new order", "rmsnorm_gather.cu", "to_float(weight[k])", "to_float(weight[j])"),
        Mutant("scattered, not gathered", "rmsnorm_gather.cu", "y[row + j]", "y[row + k]"),
        Mutant("row ignored", "rmsnorm_gather.cu", "stage_row(smem_x, x + row, K)", "stage_row(smem_x, x, K)"),
        Mutant("past the end of the row", "rmsnorm_gather.cu", "k < K; k += 8 * THREADS", "k <= K; k += 8 * THREADS"),
        Mutant("seven of eight squared", "rmsnorm_gather.cu", "i < 8; i++", "i < 7; i++"),
        Mutant("tail left out", "rmsnorm_gather.cu", "j < K; j += THREADS", "j + THREADS <= K; j += THREADS"),
    ]),
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
    return done.returncode == 1


def main(kernels: list[str]) -> int:
    """Run the mutants of these kernels, or of all; 0 if all are caught."""
    work = [(k, m, SUITES[k][0]) for k in kernels or SUITES for m in SUITES[k][1]]
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
