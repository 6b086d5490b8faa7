"""Plants one-line bugs in the kernels, runs the tests on each, and prints how many were caught.

    python tests/simt/mutants.py [kernel ...]
    python tests/simt/mutants.py --record     # and writes which test saw each into caught_by.json

A bug that no test sees is listed, and the exit status is 1. The test that saw a bug last time is run first, and all
others only if it sees nothing now.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from multiprocessing import get_context
from pathlib import Path

import numpy  # noqa: F401  what the tests import, so that their processes need not
import pytest

import cutpq  # noqa: F401
from cutpq.kernels import executor, nvrtc

ROOT = Path(__file__).resolve().parents[2]

# For each suite and bug the test that saw it when this was recorded: no more than an order in which to try.
CAUGHT_BY = Path(__file__).with_name("caught_by.json")

# Flags of pytest: none of pyproject.toml, which ask for pytest-xdist; a plugin left out collects garbage at each end.
QUICK = ["-o", "addopts=", "-p", "no:cacheprovider", "-p", "no:unraisableexception"]

# The wrong memory operations that some bugs call, in front of every mutated file.
WEAKER = ROOT / "tests" / "softgpu" / "include" / "weaker_order.cuh"
COMMENT = re.compile(r"//[^\n]*")


@dataclass(frozen=True)
class Mutant:
    """In the code of cuda_src/FILE, comments left out, the first `old` becomes `new`.

    Any white space in `old` stands for any other, so that rewrapped lines still match.
    """

    name: str
    file: str
    old: str
    new: str

    def plant(self, text: str) -> str:
        """The code of the source `text` with this bug; ValueError where the code does not contain `old`."""
        pattern = r"\s+".join(re.escape(word) for word in self.old.split())
        mutated, count = re.subn(pattern, lambda _: self.new, COMMENT.sub("", text), count=1)
        if not pattern or not count:
            raise ValueError(f"{self.name}: the code of {self.file} does not contain {self.old!r}; mend the mutant")
        return mutated


def no_barrier(name: str, file: str, after: str) -> Mutant:
    """The barrier in front of the statement that begins with `after` is left out."""
    return Mutant(name, file, f"__syncthreads(); {after}", after)


GEMM, PROBLEM, SPLIT = "gemm_w4a16.cu", "tile/gemm_problem.cuh", "tile/split_k.cuh"
X, W, Y = "tile/x_stage.cuh", "tile/w_stage.cuh", "tile/store_y.cuh"
NIBBLES, BYTES = "tile/dequant_nibbles.cuh", "tile/dequant_bytes.cuh"
GROUPED, CODES = "tile/scales_grouped.cuh", "tile/codes_fragments.cuh"
ROWS = "tile/scales_by_row.cuh"
NORM = "residual_norm.cu"
PACKED = "tile/packed_e2m1.cuh"
SUM = "tile/packed_sum.cuh"
ADDING = "tile/packed_adding.cuh"
ONESHOT, TWOSHOT = "all_reduce_oneshot.cu", "all_reduce_twoshot.cu"
SMALL = "ptx/convert_small.cuh"
PREFETCH = "prefetch_l2.cu"
ATTENTION, TILE, PARTS = "decode_attention.cu", "tile/attend_tile.cuh", "tile/attention_parts.cuh"


def codec_tests(*names: str) -> list[str]:
    """Tests of test_codec_kernels.py whose names begin so, in this order: first what soon finds much."""
    text = (Path(__file__).parent / "test_codec_kernels.py").read_text()
    found = {name: re.search(rf"def (test_{name}\w*)", text) for name in names}
    return [f"test_codec_kernels.py::{match[1]}" for match in found.values() if match]


# In how ranks meet, for both kernels that do.
MEETING = [
    Mutant("weak flag", "tile/slab.cuh", "st_release_sys(flag", "st_relaxed_sys(flag"),
    Mutant("flag for one device only", "tile/slab.cuh", "st_release_sys(flag", "st_release(flag"),
    Mutant("weak wait", "tile/slab.cuh", "ld_acquire_sys(flag)", "ld_relaxed_sys(flag)"),
    no_barrier("writes after the flag", "tile/slab.cuh", "const int peer"),
    no_barrier("only those who wait learn", "tile/slab.cuh", "u32 missing"),
    Mutant("wrong epoch", "tile/slab.cuh", "epochs()[blockIdx.x] + 1", "epochs()[blockIdx.x]"),
    Mutant("epoch does not grow", "tile/slab.cuh", "epochs()[blockIdx.x] = epoch", "epochs()[blockIdx.x] = epoch - 1"),
    Mutant(
        "epochs compared as unsigned",
        "tile/slab.cuh",
        "int((ACQUIRE ? ld_acquire_sys(flag) : ld_relaxed(flag)) - epoch) < 0",
        "(ACQUIRE ? ld_acquire_sys(flag) : ld_relaxed(flag)) < epoch",
    ),
    Mutant("early reuse of the slab", "tile/slab.cuh", "size_t(epoch % 2) * half_bytes", "0"),
    Mutant("wrong parity", "tile/slab.cuh", "size_t(epoch % 2)", "size_t(epoch / 2 % 2)"),
    Mutant("flags of another block", "tile/slab.cuh", "(meeting * GRID + blockIdx.x)", "(meeting * GRID)"),
    Mutant(
        "flag in the sender's memory",
        "tile/slab.cuh",
        "flag(peer, meeting, rank), epoch",
        "flag(rank, meeting, peer), epoch",
    ),
    Mutant("wrong name of the absent rank", "tile/slab.cuh", "1 + peer", "2 + peer"),
]

# In what keeps several tiles in flight.
FLIGHT, EITHER, WIRE_OF_PAIRS = "tile/tiles_in_flight.cuh", "tile/either_wire.cuh", "tile/packed_wire.cuh"
IN_FLIGHT = [
    Mutant("end of x read", FLIGHT, "if (groups[i] * 8 + 8 <= n) words", "if (groups[i] * 8 < n) words"),
    Mutant("ragged group as a whole one", FLIGHT, "if (groups[i] * 8 + 8 <= n) {", "if (groups[i] * 8 < n) {"),
    Mutant("one tile four times", FLIGHT, "(x + groups[i] * 8)", "(x + groups[0] * 8)"),
    Mutant(
        "one tile four times at the end",
        FLIGHT,
        "load_eight(v[i], x, groups[i] * 8",
        "load_eight(v[i], x, groups[0] * 8",
    ),
    Mutant("next tile is another block's", EITHER, "NEXT = W::TEAMS * GRID", "NEXT = W::TEAMS"),
    Mutant("groups beyond the end", FLIGHT, "at <= last ? at : tile * THREADS", "at"),
    Mutant("another block's groups at the end", FLIGHT, "at <= last ? at : tile * THREADS", "min(at, last)"),
    Mutant("wire of rank 0", FLIGHT, "load<true>(wires[w]", "load<true>(wires[0]"),
]

# In teams of a block's threads, which have sixteen numbers each.
IN_TEAMS = [
    Mutant("sixteens of the first tile", FLIGHT, "(pairs[i], x, groups[i] * 8);", "(pairs[i], x, groups[0] * 8);"),
    Mutant("half of a sixteen beyond x", FLIGHT, "groups[i] * 8 + 16 <= n", "groups[i] * 8 + 8 <= n"),
    Mutant("last number of x left out", FLIGHT, "(pairs[i], x, groups[i] * 8, n", "(pairs[i], x, groups[i] * 8, n - 1"),
    Mutant("ragged end of the first tile", FLIGHT, "(pairs[i], x, groups[i] * 8, n", "(pairs[i], x, groups[0] * 8, n"),
    Mutant("one team", EITHER, "threadIdx.x / SIZE", "0"),
    Mutant("place in the block", EITHER, "threadIdx.x % SIZE", "threadIdx.x"),
    Mutant("neighbour's eight numbers", EITHER, "place() * W::TEAMS", "place()"),
    Mutant("groups of the same granule", EITHER, "/ APART * GROUPS_OF_GRANULE", "/ APART * APART"),
    Mutant("second group over the neighbour's", FLIGHT, "group + i * Team<Wire>::APART", "group + i"),
    Mutant("first group twice", FLIGHT, "n, v + 8 * i", "n, v"),
    Mutant("codes of both teams in one tile", WIRE_OF_PAIRS, "threadIdx.x % (THREADS / TEAMS)", "threadIdx.x"),
    Mutant("tile of sixteens of all threads", WIRE_OF_PAIRS, "tile * (THREADS / TEAMS)", "tile * THREADS"),
]

# In the end of a norm.
ROW = "tile/weighted_row.cuh"
WEIGHTED_ROW = [
    Mutant(
        "halves of a word swapped",
        ROW,
        "make_uint4(prmt(x[i], w[i], 0x5410), prmt(x[i], w[i], 0x7632)",
        "make_uint4(prmt(x[i], w[i], 0x7632), prmt(x[i], w[i], 0x5410)",
    ),
    Mutant("no weight of odd columns", ROW, "prmt(x[i], w[i], 0x7632)", "prmt(x[i], x[i], 0x7632)"),
    Mutant("second half of the first", ROW, "columns + k + 2 * i", "columns + k + i"),
    Mutant("six of eight squared", ROW, "i < 4; i++", "i < 3; i++"),
    Mutant("even columns squared", ROW, "      squares = fmaf(to_float(two.y), to_float(two.y), squares);\n", ""),
    Mutant("tail left out", ROW, "j < K; j += 8 * THREADS", "j + 8 * THREADS <= K; j += 8 * THREADS"),
    Mutant("column of the next", ROW, "perm[j + i]", "perm[j + (i + 1) % 8]"),
    Mutant("order ignored", ROW, "columns[perm[j + i]]", "columns[j + i]"),
    Mutant("not weighted", ROW, " * to_float(column.y)", ""),
    Mutant("not normed", ROW, "to_float(column.x) * factor", "to_float(column.x)"),
]

# In the assembly of the wrappers, where only the PTX shows them. A "memory" clobber left out is not among them: NVRTC
# 13.5 moves no load or store over a volatile asm in any of these kernels, so that the PTX stays the same.
BITS, MMA, LDMATRIX = "ptx/bits.cuh", "ptx/mma.cuh", "ptx/ldmatrix.cuh"
CP_ASYNC, ORDER = "ptx/cp_async.cuh", "ptx/memory_order.cuh"
ASSEMBLY = [
    Mutant("table of another function", BITS, "(0xf0 & 0xcc) | 0xaa", "(0xf0 | 0xcc) & 0xaa"),
    Mutant(
        "first and third word exchanged", BITS, '"r"(a), "r"(b), "r"(c), "n"(LUT)', '"r"(c), "r"(b), "r"(a), "n"(LUT)'
    ),
    Mutant("reads where it may not", CP_ASYNC, '16, %2, %3;"', '16, 16, %3;"'),
    Mutant("reads x where it may not", CP_ASYNC, '16, %2;"', '16, 16;"'),
    Mutant("one group too few waited for", CP_ASYNC, '"n"(NEWEST)', '"n"(NEWEST + 1)'),
    Mutant("copies in no group", CP_ASYNC, "cp.async.commit_group;", ""),
    Mutant("second and third matrix exchanged", LDMATRIX, "{%0,%1,%2,%3}, [%4]", "{%0,%2,%1,%3}, [%4]"),
    Mutant("matrices transposed", LDMATRIX, "x4.shared", "x4.trans.shared"),
    Mutant("fragments of A exchanged", MMA, '"r"(a[1]), "r"(a[2])', '"r"(a[2]), "r"(a[1])'),
    Mutant("fragments of B exchanged", MMA, '"r"(b[0]), "r"(b[1])', '"r"(b[1]), "r"(b[0])'),
    Mutant("float16 taken for bfloat16", MMA, "f32.f16.f16.f32", "f32.bf16.bf16.f32"),
    Mutant("sums not added to", MMA, '{%8,%9}, " "{%0,%1,%2,%3};"', '{%8,%9}, " "{%1,%0,%2,%3};"'),
    Mutant("counter without an order", ORDER, "atom.acq_rel.gpu", "atom.relaxed.gpu"),
    Mutant("counter of its own block", ORDER, "atom.acq_rel.gpu", "atom.acq_rel.cta"),
]
# In those of the sums over peers.
FLAGS = [
    Mutant("waits without acquiring", ORDER, "ld.acquire.sys", "ld.relaxed.sys"),
    Mutant("acquires from its own device", ORDER, "ld.acquire.sys", "ld.acquire.gpu"),
    Mutant("flag before what it announces", ORDER, "st.release.sys", "st.relaxed.sys"),
]
WORDS = [
    Mutant("words of a permutation exchanged", BITS, '"r"(a), "r"(b), "r"(selector)', '"r"(b), "r"(a), "r"(selector)'),
]

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
            Mutant("mask one bit short", CODES, "(1u << BITS) - 1", "(1u << (BITS - 1)) - 1"),
            Mutant(
                "nibbles of k + 8 and k + 1 swapped",
                CODES,
                "next * 16 + eight_below * 8",
                "next * 8 + eight_below * 16",
            ),
            Mutant(
                "bytes of k + 8 and k + 1 swapped",
                CODES,
                ": next * 8 + eight_below * 16",
                ": next * 16 + eight_below * 8",
            ),
            Mutant("column half of nibbles ignored", CODES, "? half * 4 : 0;", "? 0 : 0;"),
            Mutant("column half of bytes ignored", CODES, "2 * t + half;", "2 * t;"),
            Mutant("second words of bytes as the first", CODES, "+ number / 4) * 32", ") * 32"),
            Mutant("scales in plain order", CODES, "n % 8 * 8 + n / 8 % 8", "n % 64"),
        ],
    ),
    "dependent_launch": (
        ["test_dependent_launch.py"],
        [
            Mutant("no wait for the kernel before", GEMM, "wait_for_earlier_kernels();", ""),
            Mutant(
                "wait after the first read of x",
                GEMM,
                """wait_for_earlier_kernels(); } let_next_kernel_start(); #pragma unroll 1
                for (int i = 0; i < STAGES - 1; i++) { if constexpr (!PDL) load_weights(i, i); load_x(i, i);""",
                """} let_next_kernel_start();
                for (int i = 0; i < STAGES - 1; i++) {
                  if constexpr (!PDL) load_weights(i, i);
                  load_x(i, i); if (i == 0) wait_for_earlier_kernels();""",
            ),
            Mutant(
                "one thread waits", GEMM, "wait_for_earlier_kernels();", "if (!threadIdx.x) wait_for_earlier_kernels();"
            ),
            Mutant(
                "one part waits", GEMM, "wait_for_earlier_kernels();", "if (!blockIdx.y) wait_for_earlier_kernels();"
            ),
            Mutant(
                "start taken for a wait",
                "ptx/dependent_launch.cuh",
                "griddepcontrol.wait",
                "griddepcontrol.launch_dependents",
            ),
            Mutant(
                "counters cleared before the wait",
                GEMM,
                "if constexpr (PDL) {",
                "if (!threadIdx.x) arrivals[blockIdx.z * gridDim.x + blockIdx.x] = 0; if constexpr (PDL) {",
            ),
            Mutant(
                "y cleared before the wait",
                GEMM,
                "if constexpr (PDL) {",
                "if (!threadIdx.x) y[0] = act_t(0); if constexpr (PDL) {",
            ),
            Mutant("weights after the wait", GEMM, "load_weights(i, i); wait_for", "cp_async_commit(); wait_for"),
            Mutant("the next never starts early", GEMM, "let_next_kernel_start();", ""),
            Mutant("the product after a norm starts late", NORM, "let_next_kernel_start();", ""),
        ],
    ),
    "prefetch_l2": (
        ["test_prefetch.py"],
        [
            Mutant("beyond the end", PREFETCH, "if (from >= bytes) return;", ""),
            Mutant("first strip again and again", PREFETCH, "size_t(blockIdx.y) * strip_bytes", "0"),
            Mutant("strips too close", PREFETCH, "size_t(blockIdx.y) * strip_bytes", "size_t(blockIdx.y) * bytes"),
            Mutant("requests of one block only", PREFETCH, "(blockIdx.x * THREADS + threadIdx.x)", "threadIdx.x"),
            Mutant("requests that overlap", PREFETCH, "threadIdx.x) * REQUEST", "threadIdx.x) * (REQUEST / 2)"),
            Mutant("last request too long", PREFETCH, "min(u32(REQUEST), bytes - from)", "u32(REQUEST)"),
            Mutant("a line of each request", PREFETCH, "min(u32(REQUEST), bytes - from)", "128"),
            Mutant("a request left out", PREFETCH, "from >= bytes", "from + REQUEST >= bytes"),
        ],
    ),
    "rotate_qkv": (
        ["test_attention_kernels.py", "-k", "rotate_qkv"],
        [
            Mutant("no predicate", "rotate_qkv.cu", "if (m >= M) return;", ""),
            Mutant("turned backwards", "rotate_qkv.cu", "fmaf(-imaginary, sin[i]", "fmaf(imaginary, sin[i]"),
            Mutant("sine of the real part lost", "rotate_qkv.cu", "fmaf(real, sin[i],", "fmaf(imaginary, sin[i],"),
            Mutant("four angles for eight", "rotate_qkv.cu", "(cosines + half)", "(cosines)"),
            Mutant("sines of the first four", "rotate_qkv.cu", "(sines + half)", "(sines)"),
            Mutant("angles of the first token", "rotate_qkv.cu", "size_t(m) * (D / 2) + i;", "i;"),
            Mutant("angles of the first features", "rotate_qkv.cu", "size_t(m) * (D / 2) + i;", "size_t(m) * (D / 2);"),
            Mutant(
                "keys not rotated", "rotate_qkv.cu", "cosines && head < heads + kv_heads", "cosines && head < heads"
            ),
            Mutant("values rotated", "rotate_qkv.cu", "cosines && head < heads + kv_heads", "cosines"),
            Mutant("neighbours rotated", "rotate_qkv.cu", "load_eight(b, from + D / 2", "load_eight(b, from + 8"),
            Mutant("second half over the first", "rotate_qkv.cu", "store_eight(to + D / 2", "store_eight(to"),
            Mutant("places ignored", "rotate_qkv.cu", "places ? places[m] : m", "m"),
            Mutant("position of the token's number", "rotate_qkv.cu", "positions[place]", "positions[m]"),
            Mutant("index for position", "rotate_qkv.cu", "positions[place];", "place % T;"),
            Mutant("position for index", "rotate_qkv.cu", "* T + place % T)", "* T + positions[place])"),
            Mutant("keys and values swapped", "rotate_qkv.cu", "? keys : values", "? values : keys"),
            Mutant("first key head only", "rotate_qkv.cu", "(head - heads) % kv_heads)", "0)"),
            Mutant("heads of a group apart", "rotate_qkv.cu", "head / rep) * T", "head % kv_heads) * T"),
            Mutant("order within a group", "rotate_qkv.cu", "* rep + head % rep;", "* rep + rep - 1 - head % rep;"),
            Mutant("length of T", "rotate_qkv.cu", "* length + positions", "* T + positions"),
            Mutant("first sequence", "rotate_qkv.cu", "sequence = place / T;", "sequence = 0;"),
        ],
    ),
    "softmax": (
        ["test_attention_kernels.py", "-k", "test_softmax"],
        [
            Mutant(
                "own key hidden", "softmax.cu", "max(0, position + 1 - first_key)}", "max(0, position - first_key)}"
            ),
            Mutant("next key seen", "softmax.cu", "max(0, position + 1 - first_key)}", "position + 2 - first_key}"),
            Mutant(
                "window one key wide",
                "softmax.cu",
                "position - window + 1 - first_key",
                "position - window - first_key",
            ),
            Mutant("window one key short", "softmax.cu", "position - window + 1 -", "position - window + 2 -"),
            Mutant("first key forgotten", "softmax.cu", "position + 1 - first_key)}", "position + 1)}"),
            Mutant("window from the first key", "softmax.cu", "window + 1 - first_key", "window + 1"),
            Mutant("keys before the window", "softmax.cu", "begin <= j + i && j + i < end", "j + i < end"),
            Mutant("keys after the query", "softmax.cu", "begin <= j + i && j + i < end", "begin <= j + i"),
            Mutant("positions of the first sequence", "softmax.cu", "sequence * T + first_query", "first_query"),
            Mutant("positions from the first query", "softmax.cu", "+ first_query + int", "+ int"),
            Mutant("a query each head", "softmax.cu", "% rows / rep]", "% rep]"),
            Mutant("a sequence each head", "softmax.cu", "/ rows) / kv_heads", "/ rows) % kv_heads"),
            Mutant("pairs from the first on", "softmax.cu", "(first_pair + int", "(int"),
            Mutant("scale forgotten in the sum", "softmax.cu", "sum += expf(scale *", "sum += expf("),
            Mutant(
                "scale of the largest only", "softmax.cu", "? expf(scale * (s[i] - largest))", "? expf(s[i] - largest)"
            ),
            Mutant("no largest", "softmax.cu", "largest = fmaxf(largest, s[i])", "largest = 0"),
            Mutant("one step of the sum", "softmax.cu", "sum += expf", "sum = expf"),
            Mutant("zeros forgotten", "softmax.cu", ": 0.0f;", ": s[i];"),
            Mutant("row not finished", "softmax.cu", "j < columns; j", "j < seen.end; j"),
            Mutant("whole group hidden", "softmax.cu", "seen.begin < j + 8 &&", "seen.begin <= j &&"),
            Mutant("left half twice", "softmax.cu", "(row + j + 4)", "(row + j)"),
            Mutant(
                "row of another query", "softmax.cu", "scores + size_t(blockIdx.x)", "scores + size_t(blockIdx.x / 2)"
            ),
            Mutant("largest of the first warp", "tile/block_max.cuh", "warp < THREADS / 32", "warp < 1"),
            Mutant("half of a warp's lanes", "tile/block_max.cuh", "distance = 16", "distance = 8"),
            no_barrier("no barrier", "tile/block_max.cuh", "float largest"),
            Mutant(
                "maxima and sums in one place",
                "softmax.cu",
                "block_sum(smem_sums, sum)",
                "block_sum(smem_largest, sum)",
            ),
        ],
    ),
    "decode_attention": (
        ["test_decode_attention.py", "-k", "not takes and not formula"],
        [
            Mutant("own key hidden", ATTENTION, "positions[pair / kv_heads] + 1", "positions[pair / kv_heads]"),
            Mutant("position of another sequence", ATTENTION, "positions[pair / kv_heads]", "positions[0]"),
            Mutant("window one key wide", ATTENTION, "end - window)", "end - window - 1)"),
            Mutant("window one key short", ATTENTION, "end - window)", "end - window + 1)"),
            Mutant(
                "splits before the window",
                ATTENTION,
                "const int first_split = begin / split_keys",
                "const int first_split = 0",
            ),
            Mutant("padding not zeroed", ATTENTION, "if (end == 0 &&", "if (false &&"),
            Mutant(
                "keys of the next split",
                ATTENTION,
                "int(blockIdx.y + 1) * split_keys",
                "int(blockIdx.y + 2) * split_keys",
            ),
            Mutant("keys of the split before", ATTENTION, "max(begin, int(blockIdx.y) * split_keys)", "begin"),
            Mutant("every warp all tiles", ATTENTION, "key += WARPS * TILE_KEYS", "key += TILE_KEYS"),
            Mutant("tiles of the first warp", ATTENTION, "(from / TILE_KEYS + warp)", "(from / TILE_KEYS)"),
            Mutant(
                "last warp left out",
                ATTENTION,
                "combine_parts(smem_parts, WARPS, ToY",
                "combine_parts(smem_parts, WARPS - 1, ToY",
            ),
            Mutant("keys of the first pair", ATTENTION, "keys += size_t(pair) * length * D", "keys += 0"),
            Mutant("heads of the first block", ATTENTION, "% blocks_of_pair * HEADS", "% blocks_of_pair * 0"),
            Mutant("rows of another pair", ATTENTION, "size_t(pair) * rep + first_head", "size_t(pair) + first_head"),
            Mutant(
                "parts of splits in one place",
                ATTENTION,
                "ToPart{parts + split * PART}",
                "ToPart{parts}",
            ),
            Mutant(
                "parts of blocks in one place",
                ATTENTION,
                "parts += size_t(blockIdx.x) * gridDim.y * PART",
                "parts += 0",
            ),
            Mutant("last but one combines", ATTENTION, "!= count - 1)", "!= count - 2)"),
            Mutant("counter not reset", ATTENTION, "if (threadIdx.x == 0) *arrivals = 0;", ""),
            Mutant("weak arrival", ATTENTION, "atomic_add_acq_rel", "atomic_add_relaxed"),
            no_barrier("part stored after the arrival", ATTENTION, "if (threadIdx.x == 0) *smem_arrived"),
            no_barrier("number of arrivals not awaited", ATTENTION, "if (*smem_arrived"),
            no_barrier("queries not awaited", ATTENTION, "keys += size_t(pair)"),
            no_barrier("parts of warps not awaited", ATTENTION, "if (splits == 1)"),
            Mutant("one split taken for several", ATTENTION, "if (splits == 1) return", "if (splits <= 2) return"),
            Mutant("queries of heads that do not exist", TILE, "if (head < heads) four", "four"),
            Mutant("head half of the queries", TILE, "head / 8 * 32 + lane", "lane"),
            Mutant("other features of a lane", TILE, "feature % 32 / (2 * width)", "feature % 32 / 4 % 4"),
            Mutant(
                "steps of a piece swapped",
                TILE,
                "const u32 b[2] = {k[2 * step], k[2 * step + 1]}",
                "const u32 b[2] = {k[2 * step + 1], k[2 * step]}",
            ),
            Mutant("rest of the features of a key", TILE, "D / 32 * 32 + 4 * t", "4 * t"),
            Mutant("keys of the tile's first half", TILE, "first_key + 8 * n + g", "first_key + g"),
            Mutant("values of the tile's first half", TILE, "first_key + 8 * (r / 2)", "first_key"),
            Mutant("keys beyond the end read", TILE, "min(max(key, begin), end - 1)", "max(key, begin)"),
            Mutant("keys before the window read", TILE, "min(max(key, begin), end - 1)", "min(key, end - 1)"),
            Mutant("unseen keys counted", TILE, "begin <= key && key < end ?", "key < end ?"),
            Mutant("keys after the query counted", TILE, "begin <= key && key < end ?", "begin <= key ?"),
            Mutant("not scaled", TILE, "? s * scale :", "? s :"),
            Mutant("largest of this lane", TILE, "top = fmaxf(top, __shfl_xor_sync(FULL_WARP, top, 2));", ""),
            Mutant("largest forgotten", TILE, "float top = largest[h];", "float top = minus_infinity();"),
            Mutant("total not rescaled", TILE, "total[h] *= factor;", ""),
            Mutant("sums not rescaled", TILE, "sums[e][2 * h] *= factor, ", ""),
            Mutant("probabilities of eight keys twice", TILE, "p[2 * n + h] =", "p[h] ="),
            Mutant("pairs of values swapped", TILE, "i % 2 ? 0x7632 : 0x5410", "i % 2 ? 0x5410 : 0x7632"),
            Mutant("features of one lane", TILE, "value[r] + first + WIDTH * g", "value[r] + first"),
            Mutant("total of two lanes", TILE, "return sum + __shfl_xor_sync(FULL_WARP, sum, 2)", "return sum"),
            Mutant("part not weighted", PARTS, "fmaf(weight[j / 2], reinterpret_cast", "fmaf(1.0f, reinterpret_cast"),
            Mutant("totals not weighted", PARTS, "fmaf(weight[half], head.y, total[half])", "total[half] + head.y"),
            Mutant(
                "largest of the last part",
                PARTS,
                "fmaxf(largest[half], head_of(parts + part * PART, half).x)",
                "head_of(parts + part * PART, half).x",
            ),
            Mutant(
                "largest of the first half of the heads",
                PARTS,
                "half * 8 + threadIdx.x % 32 / 4",
                "threadIdx.x % 32 / 4",
            ),
            Mutant("heads that do not exist stored", PARTS, "if (head >= heads) continue;", ""),
            Mutant("columns of y swapped", PARTS, "(2 * t + j % 2) * WIDTH", "(2 * t + 1 - j % 2) * WIDTH"),
            Mutant("not divided", PARTS, "sums[i][j] / total[j / 2]", "sums[i][j]"),
            Mutant("rest of the features left out", PARTS, "warp == (WHOLE + 1) % WARPS", "warp == WHOLE + WARPS"),
        ],
    ),
    "activation": (
        ["test_small_kernels.py", "-k", "activation"],
        [
            Mutant("no predicate", "activation.cu", "if (octet >= octets) return;", ""),
            Mutant("one octet short", "activation.cu", "octet >= octets", "octet + 1 >= octets"),
            Mutant("gate beside gate", "activation.cu", "GATED ? 16 : 8", "8"),
            Mutant("up where gate is", "activation.cu", "(up, x + from, 8, 16)", "(up, x + from, 0, 8)"),
            Mutant("gate where up is", "activation.cu", "(v, x + from, 0, 8)", "(v, x + from, 8, 16)"),
            Mutant("seven of eight", "activation.cu", "i < 8; i++) v[i] = activate", "i < 7; i++) v[i] = activate"),
            Mutant("not activated", "activation.cu", "v[i] = activate(v[i]);", "v[i] = v[i];"),
            Mutant("gate left out", "activation.cu", "v[i] *= up[i]", "v[i] = up[i]"),
            Mutant("octets beside their places", "activation.cu", "y + size_t(octet) * 8", "y + size_t(octet ^ 1) * 8"),
            Mutant("half a warp", "activation.cu", "threadIdx.x;", "threadIdx.x / 2;"),
            Mutant("sigmoid mirrored", "tile/activation.cuh", "__expf(-v)", "__expf(v)"),
            Mutant("other half of gelu", "tile/activation.cuh", "1.0f + erff", "1.0f - erff"),
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
            Mutant("row stride of y", "gather_columns.cu", "y[((size_t)m * columns", "y[((size_t)m * K"),
            Mutant("row stride of x", "gather_columns.cu", "x + (size_t)m * K", "x + (size_t)m * columns"),
            Mutant("rows skipped", "gather_columns.cu", "m += gridDim.y", "m += gridDim.y + 1"),
            Mutant("every block all rows", "gather_columns.cu", "m = blockIdx.y", "m = 0"),
            Mutant("one row too many", "gather_columns.cu", "m < M", "m <= M"),
            Mutant("index of the next column", "gather_columns.cu", "perm[j + i]", "perm[j + i + 1]"),
        ],
    ),
    "round_rows": (
        ["test_round_rows.py"],
        [
            Mutant(
                "columns beyond the end read",
                "round_rows.cu",
                "inside ? v[size_t(i) * N + n] : 0.0f",
                "v[size_t(i) * N + n]",
            ),
            Mutant(
                "columns beyond the end written", "round_rows.cu", "if (inside && part == owner)", "if (part == owner)"
            ),
            Mutant(
                "row of another lane",
                "round_rows.cu",
                "owner * WARP_COLUMNS + lane",
                "(owner ^ 1) * WARP_COLUMNS + lane",
            ),
            Mutant("column of another lane", "round_rows.cu", "WARP_COLUMNS + lane % WARP_COLUMNS);", "WARP_COLUMNS);"),
            Mutant("group of the next row", "round_rows.cu", "group[i]", "group[i + 1 < R ? i + 1 : i]"),
            Mutant("truncated", "round_rows.cu", "rintf", "truncf"),
            Mutant("halves away from zero", "round_rows.cu", "rintf", "roundf"),
            Mutant(
                "no lower end",
                "round_rows.cu",
                "fmaxf(__fadd_rn(rintf(__fdiv_rn(w, scale)), zero), 0.0f)",
                "__fadd_rn(rintf(__fdiv_rn(w, scale)), zero)",
            ),
            Mutant("no upper end", "round_rows.cu", "0.0f), most)", "0.0f), 255.0f)"),
            Mutant("zero point not taken off", "round_rows.cu", "__fsub_rn(code, zero)", "code"),
            Mutant(
                "error of descent the other way",
                "round_rows.cu",
                "__fsub_rn(rounded, before[at])",
                "__fsub_rn(before[at], rounded)",
            ),
            Mutant("before not looked at", "round_rows.cu", "!inside || before == nullptr ?", "true ?"),
            Mutant("first later row skipped", "round_rows.cu", "i + 1 + (part - i - 1", "i + 2 + (part - i - 2"),
            Mutant(
                "coupling transposed", "round_rows.cu", "coupling[size_t(i) * R + j]", "coupling[size_t(j) * R + i]"
            ),
            Mutant(
                "fused",
                "round_rows.cu",
                "__fsub_rn(smem_v[j * PITCH], __fmul_rn(coupling[size_t(i) * R + j], error))",
                "fmaf(-coupling[size_t(i) * R + j], error, smem_v[j * PITCH])",
            ),
            Mutant("added", "round_rows.cu", "= __fsub_rn(smem_v[j", "= __fadd_rn(smem_v[j"),
            Mutant("rows too close", "round_rows.cu", "COLUMNS + 8", "COLUMNS - 8"),
        ],
    ),
    "rmsnorm_gather": (
        ["test_small_kernels.py", "-k", "rmsnorm"],
        [
            Mutant("no barrier", "tile/block_sum.cuh", "__syncthreads();", ""),
            Mutant("warp sum one step short", "tile/block_sum.cuh", "distance = 16", "distance = 8"),
            Mutant("one warp forgotten", "tile/block_sum.cuh", "warp < THREADS / 32", "warp < THREADS / 32 - 1"),
            Mutant(
                "sums of one place", "tile/block_sum.cuh", "smem_sums[threadIdx.x / 32] = value", "smem_sums[0] = value"
            ),
            Mutant(
                "epsilon outside the root",
                "rmsnorm_gather.cu",
                "squares / float(K) + epsilon)",
                "squares / float(K)) + epsilon",
            ),
            Mutant("sum instead of mean", "rmsnorm_gather.cu", "squares / float(K)", "squares"),
            Mutant("weights shifted", "rmsnorm_gather.cu", "(weight + k)", "(weight + (k + 8) % K)"),
            Mutant("row ignored", "rmsnorm_gather.cu", "stage_row(staged, x + row,", "stage_row(staged, x,"),
            Mutant("every row of y the first", "rmsnorm_gather.cu", "write(y + row,", "write(y,"),
            Mutant(
                "past the end of the row", "rmsnorm_gather.cu", "k < K; k += 8 * THREADS", "k <= K; k += 8 * THREADS"
            ),
            *WEIGHTED_ROW,
        ],
    ),
    "residual_norm": (
        ["test_residual_norm.py"],
        [
            Mutant("no barrier", "tile/block_sum.cuh", "__syncthreads();", ""),
            Mutant("total not added", NORM, "__fadd_rn(v[i], term[i])", "v[i]"),
            Mutant(
                "residual not stored",
                NORM,
                "if (total) *reinterpret_cast<uint4*>(residual",
                "if (!K) *reinterpret_cast<uint4*>(residual",
            ),
            Mutant(
                "residual stored without a total",
                NORM,
                "if (!total) return old;",
                "if (!total) return make_uint4(0, 0, 0, 0);",
            ),
            Mutant("total of the first row", NORM, "total + row + k", "total + k"),
            Mutant("weights shifted", NORM, "(weight + k)", "(weight + (k + 8) % K)"),
            Mutant(
                "mean of squares, not of the row",
                NORM,
                "block_sum(smem_sums, row_sum(staged, K))",
                "block_sum(smem_sums, squares)",
            ),
            Mutant("variance around zero", NORM, "row_squares(staged, mean, K)", "row_squares(staged, 0.0f, K)"),
            Mutant(
                "one array for both sums", NORM, "variance = block_sum(smem_squares", "variance = block_sum(smem_sums"
            ),
            Mutant("mean not subtracted", NORM, "(to_float(column.x) - mean) * factor", "to_float(column.x) * factor"),
            Mutant("bias of another column", NORM, "to_float(bias[k])", "to_float(bias[j + i])"),
            Mutant("bias forgotten", NORM, "to_float(bias[k])", "0.0f"),
            Mutant("every row of y the first", NORM, "write(y + row,", "write(y,"),
            Mutant("every centred row the first", NORM, "write_centred(staged, y + row", "write_centred(staged, y"),
            Mutant(
                "past the end of the row",
                NORM,
                "blockIdx.x * K; float squares = 0; for (int k = 8 * threadIdx.x; k < K;",
                "blockIdx.x * K; float squares = 0; for (int k = 8 * threadIdx.x; k <= K;",
            ),
        ],
    ),
    # gemm_w4a16, by the tests that come to the point soonest; all of them together are run by pytest
    "gemm_w4a16: ring": (
        ["test_gemm_kernel.py", "-k", "no_race or (parts_of_a_column and not 40)"],
        [
            no_barrier("no barrier in the main loop", GEMM, "load_weights(empty, unit"),
            Mutant("no wait", GEMM, "    cp_async_wait<STAGES - 2>();\n", ""),
            Mutant("wait for one too few", GEMM, "cp_async_wait<STAGES - 2>", "cp_async_wait<STAGES - 1>"),
            Mutant("load into the full stage", GEMM, "load_weights(empty, unit", "load_weights(full, unit"),
            Mutant("no commit", GEMM, "    cp_async_commit();\n", ""),
            Mutant("stage not advanced", GEMM, "full + 1 == STAGES ? 0 : full + 1", "full"),
            Mutant("last unit left out", GEMM, "unit < p.units; unit++", "unit + 1 < p.units; unit++"),
            Mutant("loads a unit late", GEMM, "unit + STAGES - 1);", "unit + STAGES);"),
            no_barrier("sums over codes not yet read", GEMM, "reduce_over_warps"),
            Mutant("w moved by half a unit", W, "source += BLOCK_K / 16 *", "source += BLOCK_K / 32 *"),
            Mutant("x not moved", X, "source += BLOCK_K;", ""),
            Mutant("stages of x overlap", X, "16 * stage * X_STAGE", "16 * stage * (X_STAGE - X_ROW)"),
            Mutant("stages of w overlap", W, "16 * (stage * W_STAGE", "16 * (stage * (W_STAGE - THREADS)"),
            Mutant("columns of the first block", PROBLEM, "n = blockIdx.z * BLOCK_N", "n = 0"),
            Mutant("parts overlap", PROBLEM, "/ gridDim.y - first;", "/ gridDim.y - first + 1;"),
            Mutant("every part from the top", PROBLEM, "k = first * BLOCK_K", "k = 0"),
        ],
    ),
    "gemm_w4a16: sums": (
        ["test_gemm_kernel.py", "-k", "no_race or counters or (parts_of_a_column and not 40)"],
        [
            no_barrier("no barrier before adding over warps", SPLIT, "if (at.warp_k < half)"),
            no_barrier("no barrier after adding over warps", SPLIT, "} }"),
            no_barrier("no barrier before the arrival", SPLIT, "if (threadIdx.x == 0) *smem_arrived"),
            no_barrier("no barrier after the arrival", SPLIT, "if (*smem_arrived"),
            Mutant("weak arrival", SPLIT, "atomic_add_acq_rel", "atomic_add_relaxed"),
            Mutant("counter not reset", SPLIT, "if (threadIdx.x == 0) arrivals[column] = 0;", ""),
            Mutant("last but one adds", SPLIT, "!= gridDim.y - 1)", "!= gridDim.y - 2)"),
            Mutant("first part left out", SPLIT, "float4 sum = parts[word];", "float4 sum = {};"),
            Mutant("last part left out", SPLIT, "part < gridDim.y; part++", "part + 1 < gridDim.y; part++"),
            Mutant("one slot for all", SPLIT, "parts + blockIdx.y * TILE", "parts"),
            Mutant("slots of other tokens", SPLIT, "blockIdx.z * gridDim.x + blockIdx.x", "blockIdx.z"),
            Mutant("warp left out", SPLIT, "at.warp_k < 2 * half", "at.warp_k < 2 * half - 1"),
            Mutant("sums of the first round only", SPLIT, "else set_word(sums, e, sum);", ""),
            Mutant("tokens left out", SPLIT, "word % 4 * 2 < p.M", "word % 4 * 2 + 1 < p.M"),
            no_barrier("no barrier before storing y", SPLIT, "return true;"),
        ],
    ),
    "gemm_w4a16: x, w, y": (
        ["test_gemm_kernel.py", "-k", "bank or ragged or gated or (every_tile and 130-float)"],
        [
            Mutant("no swizzle", X, "(i ^ m % 8)", "i"),
            Mutant("other swizzle on the way in", X, "16 * x_chunk(m, i)", "16 * x_chunk(m ^ 1, i)"),
            Mutant("chunks of a step swapped", X, "+ number % 2;", "+ 1 - number % 2;"),
            Mutant("token tiles swapped", X, "+ 8 * next, chunk)", "+ 8 * (1 - next), chunk)"),
            Mutant("steps of a token tile swapped", X, "chunk + 2 * next", "chunk + 2 * (1 - next)"),
            Mutant("later steps as the first", X, "first ^ 32 * step", "first"),
            Mutant("no token predicate", X, "tokens > 0 ? p.units_with(8 * i) : 0", "p.units_with(8 * i)"),
            Mutant("no predicate on further tokens", X, "(row == 0 || row < tokens)", "true"),
            Mutant("no column predicate on x", X, "unit < units && (row", "(row"),
            Mutant("column of another chunk", X, "p.units_with(8 * i) : 0", "p.units_with(0) : 0"),
            Mutant("tokens of the first tile", PROBLEM, "m = blockIdx.x * BLOCK_M", "m = 0"),
            Mutant("no predicate on rows of w", W, "policy, unit < units", "policy, true"),
            Mutant("strips beyond the last", PROBLEM, "min(p.n / STRIP + warp_n, p.strips - 1)", "p.n / 64 + warp_n"),
            Mutant("steps of w swapped", W, "own[stage * W_STAGE + i", "own[stage * W_STAGE + (i ^ 1)"),
            Mutant("slab of another warp", W, "STEPS * at.warp_k", "STEPS * (at.warp_k ^ 1)"),
            Mutant("y beyond its columns", Y, "min(BLOCK_N, p.N - p.n)", "BLOCK_N"),
            Mutant("y beyond its tokens", Y, "min(BLOCK_M, p.M - p.m)", "BLOCK_M"),
            Mutant("bias of the first columns", Y, "bias[n + g]", "bias[g]"),
            Mutant("columns g and g + 8 swapped", Y, "2 * h + m % 2", "2 * (1 - h) + m % 2"),
        ],
    ),
    "gemm_w4a16: activation": (
        ["test_gemm_kernel.py", "-k", "fast and (activated or (gated and 19))"],
        [
            Mutant("up activated, not gate", Y, "sum[g] = activate(sum[g])", "sum[g] += 0.0f"),
            Mutant("gate left out", Y, "sum[g] *= up[g]", "sum[g] = up[g]"),
            Mutant("other half of gelu", "tile/activation.cuh", "1.0f + erff", "1.0f - erff"),
            Mutant("tanh of half", "tile/activation.cuh", "1.5957691f", "0.79788456f"),
            Mutant("square, not cube", "tile/activation.cuh", "v * v * v)", "v * v)"),
            Mutant("sigmoid mirrored", "tile/activation.cuh", "__expf(-v)", "__expf(v)"),
        ],
    ),
    "gemm_w4a16: weights": (
        ["test_gemm_kernel.py", "-k", "bit_for_bit or (kind_of_groups and (groups_of or short))"],
        [
            Mutant("pairs of other rows", NIBBLES, "i < 2 ? *codes : *codes >> 8", "i < 2 ? *codes : *codes >> 4"),
            Mutant("wrong nibble", NIBBLES, "shifted, 0x00f000f0", "shifted, 0x0f000f00"),
            Mutant("eighth instead of sixteenth", NIBBLES, "0x2c002c00", "0x30003000"),
            Mutant("zero of the high nibble", NIBBLES, "zeros << 4", "zeros << 3"),
            Mutant("zero of the low nibble", NIBBLES, "zeros | 0x64006400", "zeros | 0x64016401"),
            Mutant(
                "float16 scale cut to bfloat16",
                NIBBLES,
                "__hfma2(difference, as_pair<Pair>(scale.high), small)",
                "__hmul2(difference, as_pair<Pair>(scale.high))",
            ),
            Mutant("whole scale as its second part", NIBBLES, "rest = value - to_float(high.x)", "rest = value"),
            Mutant("zero of bfloat16", NIBBLES, "zeros | 0x43004300", "zeros | 0x43014301"),
            Mutant("scales of the first slab", GROUPED, "row(p.k + at.warp_k * SLAB)", "row(p.k)"),
            Mutant("scales not moved on", GROUPED, "scales += down * columns", "scales += 0"),
            Mutant("zeros not moved on", GROUPED, "zeros += down * columns", "zeros += 0"),
            Mutant("groups of a unit", GROUPED, "? group_of(BLOCK_K) :", "? 1 :"),
            Mutant("a group at every unit", GROUPED, ": group_of(row + BLOCK_K) - group_of(row)", ": 1"),
            Mutant("scales beyond the last group", GROUPED, "scales, unit < w.units", "scales, true"),
            Mutant("scales of g and g + 8 swapped", GROUPED, "i % 2 ? two.y : two.x", "i % 2 ? two.x : two.y"),
            Mutant("zeros of g and g + 8 swapped", GROUPED, "offset_[2 * t + i % 2]", "offset_[2 * t + 1 - i % 2]"),
            Mutant("zeros of the other g", GROUPED, "at.g % 2 ? uint2", "at.g % 2 == 0 ? uint2"),
            Mutant("zeros of another g", GROUPED, "first / 16 * 16", "first / 32 * 32"),
            Mutant("zero of one row", GROUPED, "i % 4 * 0x0101", "i % 4 * 0x0100"),
        ],
    ),
    "gemm_w4a16: 8 bits": (
        ["test_gemm_kernel.py", "-k", "(bit_for_bit and 8) or (eight_bits and (fast or 16-float16))"],
        [
            Mutant("rows c + 8 as rows c", BYTES, "i < 2 ? 0x4140 : 0x4342", "0x4140"),
            Mutant("rows of a pair exchanged", BYTES, "0x4140 : 0x4342", "0x4041 : 0x4243"),
            Mutant("columns g and g + 8 exchanged", BYTES, "prmt(codes[i % 2]", "prmt(codes[1 - i % 2]"),
            Mutant("column g + 8 in float32 as g", BYTES, "word = codes[i % 2]", "word = codes[0]"),
            Mutant("zero of float16", BYTES, "zeros | 0x64006400", "zeros | 0x64016401"),
            Mutant("zero of a nibble", BYTES, "zeros & 0xffff | 0x4b000000", "zeros & 0xf | 0x4b000000"),
            Mutant("zero of the first row for both", BYTES, "zeros >> 16 | 0x4b", "zeros & 0xffff | 0x4b"),
            Mutant("added to 2^25", BYTES, "prmt(word, 0x4b000000", "prmt(word, 0x4c000000"),
            Mutant("first rows for all", BYTES, "first_byte = i / 2 * 2", "first_byte = 0"),
            Mutant("second row as the first", BYTES, "(word, first_byte + 1)", "(word, first_byte)"),
            Mutant("scale of the first row for both", BYTES, "second * scale.second", "second * scale.first"),
            Mutant("halves of a step exchanged", W, "step * CODE_WORDS + i)", "step * CODE_WORDS + (i ^ 1))"),
            Mutant("first half of a step twice", W, "step * CODE_WORDS + i)", "step * CODE_WORDS)"),
            Mutant("half a slab's codes", W, "LANE_CODES = STEPS * CODE_WORDS", "LANE_CODES = STEPS"),
            Mutant("tiles of half the size", W, "tile * CODE_WORDS * 32", "tile * 32"),
            Mutant("moved by half a unit", W, "/ 16 * CODE_WORDS * 32", "/ 16 * 32"),
            Mutant("scales over codes", GROUPED, "w.target_of(stage, LANE_CODES)", "w.target_of(stage, STEPS)"),
            Mutant("a word for two tiles", "tile/mma_slab.cuh", "codes.word + t * CODE_WORDS", "codes.word + t"),
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
            Mutant("unordered rows judged as ordered", ROWS, "SCALE_LOOKUP != ASCENDING || ", ""),
            Mutant("g_idx beyond its end", ROWS, "row < p.tiles_k16 * 16 ? p.g_idx[row] : 0", "p.g_idx[row]"),
            Mutant("second step as the first", "tile/mma_slab.cuh", "first_row + 16 * step", "first_row"),
            Mutant("slab of the first warp", "tile/mma_slab.cuh", "BLOCK_K + at.warp_k * SLAB;", "BLOCK_K;"),
        ],
    ),
    "encode": (
        codec_tests("ragged", "codes_by", "scale_at", "blocks_of", "sixteen", "no_race", "input_that", "every_family"),
        [
            Mutant(
                "floor instead of nearest",
                "tile/element_code.cuh",
                "u32(23 - MANTISSA_BITS + 127) << 23;",
                "u32(24 - MANTISSA_BITS + 127) << 23;",
            ),
            Mutant(
                "not saturated",
                "tile/element_code.cuh",
                "__hmin2(pair, as_pair<half2>(LARGEST_FIELD))",
                "pair",
            ),
            Mutant(
                "no subnormal elements",
                "tile/element_code.cuh",
                "max(__float_as_uint(v) & FLOAT_EXPONENT, first_binade)",
                "(__float_as_uint(v) & FLOAT_EXPONENT)",
            ),
            Mutant("sign lost", "tile/element_code.cuh", "signs[1], 0x5410) & 0x80808080u", "signs[1], 0x5410) & 0"),
            Mutant("signs of neighbours", "tile/element_code.cuh", "0x0073", "0x0037"),
            Mutant("halves out of order", "tile/element_code.cuh", "0x7531", "0x5731"),
            Mutant("mantissa cut", "tile/element_code.cuh", "if (LANE == 16) fields[i] <<= SURPLUS;", ""),
            Mutant("codes not left-aligned", "tile/element_code.cuh", "if (LANE == 8) codes <<= SURPLUS;", ""),
            Mutant(
                "even and odd exchanged",
                "tile/bit_pack.cuh",
                "words[0] >> 4 | words[1]",
                "words[1] >> 4 | words[0]",
            ),
            Mutant("signed magnitude", "tile/block_scale.cuh", "CONVERTED ? v : fabsf(v)", "v"),
            Mutant("magnitude of E4M3", "tile/block_scale.cuh", "CONVERTED ? v : fabsf(v)", "fabsf(v)"),
            Mutant("E4M3 of a field", "tile/block_scale.cuh", "CONVERTED ? 1.0f : field_of", "field_of"),
            Mutant("E4M3 of the next number", SMALL, '"f"(second), "f"(first)', '"f"(first), "f"(second)'),
            Mutant("E5M2 for E4M3", SMALL, "satfinite.e4m3x2", "satfinite.e5m2x2"),
            Mutant("E2M1 of the second for the third", SMALL, "c, %3, %7", "c, %2, %7"),
            Mutant("E2M1 of pairs exchanged", PACKED, "e2m1_bytes(high, low)", "e2m1_bytes(low, high)"),
            Mutant(
                "E2M1 in the lower half",
                "tile/element_code.cuh",
                "e2m1_bytes({v[0], v[1], v[2], v[3]}, {})",
                "e2m1_bytes({}, {v[0], v[1], v[2], v[3]})",
            ),
            Mutant("no rounding", "tile/element_code.cuh", "fmaf(-binade,", "fmaf(-0.0f * binade,"),
            Mutant(
                "bias of the code",
                "tile/element_code.cuh",
                "u32(ELEMENT_BIAS - 15 + 127)",
                "u32(ELEMENT_BIAS - 14 + 127)",
            ),
            Mutant("a binade below the first", "tile/element_code.cuh", "u32(-14 + 127)", "u32(-15 + 127)"),
            Mutant("tiles overlap", "encode.cu", "tile += gridDim.x", "tile += gridDim.x + 1"),
            no_barrier("scratch reused at once", "tile/block_wire.cuh", "}"),
            Mutant(
                "scale byte of every group",
                "tile/block_wire.cuh",
                "scales[block] = u8(scale)",
                "scales[group] = u8(scale)",
            ),
            Mutant("scale byte beyond the share", "tile/block_wire.cuh", "if (inside && group %", "if (group %"),
            Mutant("carry one number late", "tile/block_scale.cuh", "- u32(CARRY_AT));", "- u32(CARRY_AT) - 1);"),
            Mutant(
                "subnormal largest magnitude",
                "tile/block_scale.cuh",
                "MAX_EXPONENT == 0 && amax < 0x00800000u",
                "false",
            ),
            Mutant(
                "scale not saturated",
                "tile/block_scale.cuh",
                "min(max(code, SCALE_SMALLEST), SCALE_LARGEST)",
                "max(code, SCALE_SMALLEST)",
            ),
            Mutant("scale of zero", "tile/block_scale.cuh", "max(code, SCALE_SMALLEST)", "max(code, 0)"),
            Mutant("Inf taken for a number", "tile/block_scale.cuh", "amax < FLOAT_EXPONENT", "amax <= FLOAT_EXPONENT"),
            Mutant(
                "ties of a ratio up",
                "tile/block_scale.cuh",
                "to_upper == to_lower && below % 2 == 1",
                "to_upper == to_lower",
            ),
            Mutant(
                "ratio below the normal numbers",
                "tile/block_scale.cuh",
                "normal ? in_normal : in_subnormal",
                "in_normal",
            ),
            Mutant(
                "inverse of the smallest scale",
                "tile/block_scale.cuh",
                "max(u32(127 + SCALE_BIAS - int(code)) << 23, 0x00400000u)",
                "(u32(127 + SCALE_BIAS - int(code)) << 23)",
            ),
            Mutant(
                "half of a block",
                "tile/block_wire.cuh",
                "distance = GROUPS_OF_BLOCK / 2",
                "distance = GROUPS_OF_BLOCK / 4",
            ),
            no_barrier("no barrier", "tile/block_wire.cuh", "for (int i = threadIdx.x"),
            Mutant(
                "codes of a NaN block",
                "tile/block_wire.cuh",
                "scale == u32(SCALE_NAN) ? 0 : pack(codes)",
                "pack(codes)",
            ),
            Mutant(
                "unused bits of the scales",
                "tile/block_wire.cuh",
                "u16(inside ? scale : 0)",
                "u16(inside ? scale : ~0)",
            ),
            Mutant(
                "scale bits of one block only",
                "tile/block_wire.cuh",
                "k <= (8 * i + 7) / SCALE_BITS",
                "k <= 8 * i / SCALE_BITS",
            ),
            Mutant("no end of the scales", "tile/block_wire.cuh", "if (at < scales_bytes(blocks)) scales", "scales"),
            Mutant(
                "second lane of a word forgotten", "tile/bit_pack.cuh", "if (last != first) word", "if (false) word"
            ),
            Mutant("no end of the elements", "tile/bit_pack.cuh", "if (!inside) return;", ""),
            Mutant("ragged words whole", "tile/bit_pack.cuh", "start + at + 4 <= end", "start + at < end"),
            Mutant(
                "ragged end read",
                "tile/eight.cuh",
                "first + i < n ? to_float(x[first + i]) : 0.0f",
                "to_float(x[first + i])",
            ),
            Mutant("padding not written", "encode.cu", "if (padding && blockIdx.x", "if (false && blockIdx.x"),
        ],
    ),
    "encode: packed": (
        codec_tests("packed", "ragged", "blocks_of"),
        [
            Mutant(
                "second word as the first",
                PACKED,
                "reinterpret_cast<const uint4*>(x + first)[i]",
                "reinterpret_cast<const uint4*>(x + first)[0]",
            ),
            Mutant("ragged end read", PACKED, "at + 1 < n ? u32(bits[at + 1]) << 16 : 0", "u32(bits[at + 1]) << 16"),
            Mutant("sixteen numbers on a ragged end", PACKED, "first + 16 <= n", "first + 15 <= n"),
            Mutant("NaN lost", PACKED, "__hmax2_nan(largest", "__hmax2(largest"),
            Mutant(
                "largest of even columns",
                PACKED,
                "max(as_u32(largest) & 0xffff, as_u32(largest) >> 16)",
                "as_u32(largest) & 0xffff",
            ),
            Mutant(
                "largest of half a block",
                PACKED,
                "distance = SIXTEENS_OF_BLOCK / 2",
                "distance = SIXTEENS_OF_BLOCK / 4",
            ),
            Mutant("factor of one half", PACKED, "u32(k - k / 2 + 15)", "u32(k / 2 + 15)"),
            Mutant("infinite factor of a block of zeros", PACKED, ", 30);", ", 32);"),
            Mutant("no subnormal elements", PACKED, "as_pair<half2>(0x3c003c00)", "as_pair<half2>(0x38003800)"),
            Mutant("rounded to the next step", PACKED, "0x60006000", "0x64006400"),
            Mutant("not rounded", PACKED, "__hfma2(__hneg2(binade), steps, raised)", "magnitude"),
            Mutant("not saturated", PACKED, "__hmin2(rounded, as_pair<half2>(0x46004600))", "rounded"),
            Mutant("sign lost", PACKED, " | (sign >> 4 & 0x08080808)", ""),
            Mutant("odd codes under even ones", PACKED, "0x7531) << 4", "0x6420) << 4"),
            Mutant(
                "halves of a group swapped", PACKED, "u64(codes[1]) << 32 | codes[0]", "u64(codes[0]) << 32 | codes[1]"
            ),
            Mutant("codes of a NaN block", PACKED, "codes[0] = codes[1] = 0", "codes[0] = 0"),
            Mutant("no end of the share", PACKED, "if (block >= u32(blocks)) return;", ""),
            Mutant("always taken for aligned", PACKED, "ALIGNED || is_aligned(wire, 8)", "true"),
            Mutant("groups of an unaligned wire", PACKED, "2 * sixteen + i", "2 * sixteen"),
            Mutant(
                "scale of every sixteen", PACKED, "[scales_at + block] = u8(scale)", "[scales_at + sixteen] = u8(scale)"
            ),
            Mutant("tiles overlap", PACKED, "tile += gridDim.x", "tile += gridDim.x + 1"),
        ],
    ),
    "decode_sum": (
        [
            *codec_tests("order_of", "ragged", "sum_of_scales", "term", "sixteen", "bytes", "blocks_of", "sum_has"),
            *codec_tests("sum_of_special"),
            *codec_tests("sum_equals", "every_family", "no_race"),
        ],
        [
            Mutant(
                "wrong order of ranks",
                "tile/rank_sum.cuh",
                "wires[rank] = first_wire + rank * wire_bytes",
                "wires[rank] = first_wire + (RANKS - 1 - rank) * wire_bytes",
            ),
            Mutant(
                "last rank forgotten",
                "tile/block_wire.cuh",
                "i < COUNT; i++) {\n      const float X",
                "i == 0 || i < COUNT - 1; i++) {\n      const float X",
            ),
            Mutant(
                "rank 0 twice",
                "tile/block_wire.cuh",
                "8 * group, terms[i].packed[group], X",
                "8 * group, terms[0].packed[group], X",
            ),
            Mutant(
                "scale of rank 0",
                "tile/block_wire.cuh",
                "ORDINARY ? scale_of_fields(terms[i].scale)",
                "ORDINARY ? scale_of_fields(terms[0].scale)",
            ),
            Mutant(
                "first group twice",
                "tile/block_wire.cuh",
                "8 * group, terms[i].packed[group], X",
                "8 * group, terms[i].packed[0], X",
            ),
            Mutant(
                "first group twice in half2",
                "tile/block_wire.cuh",
                "unpack(codes, terms[i].packed[group])",
                "unpack(codes, terms[i].packed[0])",
            ),
            Mutant("groups in one place", "tile/block_wire.cuh", "add_word(sum + 8 * group, ", "add_word(sum, "),
            Mutant(
                "groups in one place, in float",
                "tile/block_wire.cuh",
                "add<ORDINARY>(sum + 8 * group, ",
                "add<ORDINARY>(sum, ",
            ),
            Mutant(
                "neighbour for the second group",
                "tile/block_wire.cuh",
                "i * (GROUPS_OF_BLOCK / GROUPS) * CODES_BYTES",
                "i * CODES_BYTES",
            ),
            Mutant("stored beside the first group", "decode_sum.cu", "(group + i * APART)", "(group + i)"),
            Mutant("blocks overlap", "decode_sum.cu", "at / APART * GROUPS_OF_BLOCK + at % APART", "at"),
            Mutant("fused beyond float32", "tile/block_wire.cuh", "if (ordinary) add", "if (true) add"),
            Mutant("room for fields only", "tile/block_scale.cuh", "MAX_EXPONENT + 1 > 15", "-1 > 15"),
            Mutant("not a sum's room", SUM, "highest = max(highest, highest_of[group])", "highest = highest_of[group]"),
            Mutant(
                "lowest of the last group", SUM, "lowest = min(lowest, lowest_of[group])", "lowest = lowest_of[group]"
            ),
            Mutant("highest of a group", SUM, "i % SIZE ? max(high, terms[i].scale)", "i % SIZE ? high"),
            Mutant("lowest of a group", SUM, "i % SIZE ? min(low, terms[i].scale)", "i % SIZE ? low"),
            Mutant("any distance of groups", SUM, "highest - lowest <= WHOLE", "true"),
            Mutant(
                "first group alone exact",
                SUM,
                "is_exact(lowest_of[group], highest_of[group])",
                "is_exact(lowest_of[0], highest_of[0])",
            ),
            Mutant(
                "unit of the first group",
                "tile/block_wire.cuh",
                "packed(scales.lowest_of[few])",
                "packed(scales.lowest_of[0])",
            ),
            Mutant("last ranks alone", "tile/block_wire.cuh", "pairs, few == 0)", "pairs, true)"),
            Mutant("a binade too far", SUM, "highest - lowest <= SPREAD", "highest - lowest <= SPREAD + 1"),
            Mutant("room for one term", SUM, "int(2048 / STEPS) / COUNT", "int(2048 / STEPS)"),
            Mutant("a larger element", SUM, "EXPONENT > 0 ? EXPONENT - 1 : 0", "0"),
            Mutant("steps of a mantissa only", SUM, "u64(ONE + LARGEST_CODE % ONE)", "u64(1 + LARGEST_CODE % ONE)"),
            Mutant("scales with a mantissa", SUM, "SCALE_MANTISSA_BITS == 0 && SPREAD", "SPREAD"),
            Mutant("factor beyond float16", SUM, "15 + 15 - SPREAD - lowest", "15 + 16 - SPREAD - lowest"),
            Mutant("factor of one half", SUM, "scale * 0x04000400u", "scale * 0x00000400u"),
            Mutant("unit of another factor", SUM, "u32(SPREAD - 15 + 127)", "u32(SPREAD - 14 + 127)"),
            Mutant("first term doubled", SUM, "first ? __hmul2(fields[i], factor)", "first ? fields[i]"),
            Mutant("pair of the other half", SUM, "__hfma2(fields[i], factor", "__hfma2(fields[0], factor"),
            Mutant(
                "numbers of a pair swapped",
                SUM,
                "v[2 * i] = first ? __fmul_rn(both.x",
                "v[2 * i] = first ? __fmul_rn(both.y",
            ),
            Mutant(
                "words swapped", "tile/block_wire.cuh", "packed.add(pairs, codes[w]", "packed.add(pairs, codes[1 - w]"
            ),
            Mutant("packed beyond float32", "tile/block_wire.cuh", "if (ordinary && scales", "if (scales"),
            Mutant(
                "NaN codes are numbers", "tile/element_code.cuh", "if (LARGEST_CODE < int(MAGNITUDES))", "if (false)"
            ),
            Mutant("halves out of order", "tile/element_code.cuh", "0x3424 : 0x1404", "0x1404 : 0x3424"),
            Mutant(
                "sums in another order of codes",
                "tile/block_wire.cuh",
                "total = sum[code_at(w, i)]",
                "total = sum[4 * w + i]",
            ),
            Mutant(
                "always taken for aligned",
                "tile/rank_sum.cuh",
                "aligned = aligned && BlockWire::is_aligned(wires[rank])",
                "aligned = true",
            ),
            Mutant("NaN scale taken for a number", "tile/block_scale.cuh", "int(code) > SCALE_LARGEST", "false"),
            Mutant(
                "smallest scale is zero",
                "tile/block_scale.cuh",
                "exponent > 0 ? u32(exponent) << 23 : 0x00400000u",
                "u32(exponent) << 23",
            ),
            Mutant(
                "mantissa of a scale shifted",
                "tile/block_scale.cuh",
                "code << (23 - SCALE_MANTISSA_BITS)",
                "code << (22 - SCALE_MANTISSA_BITS)",
            ),
            Mutant("sign lost", "tile/element_code.cuh", "(codes & sign) | (codes", "(codes"),
            Mutant(
                "scale of the next block",
                "tile/block_wire.cuh",
                "group / GROUPS_OF_BLOCK);",
                "group / GROUPS_OF_BLOCK + 1);",
            ),
            Mutant("scale that crosses a byte", "tile/block_wire.cuh", "bit % 8 + SCALE_BITS > 8)", "false)"),
            Mutant(
                "elements of the next group",
                "tile/block_wire.cuh",
                "wire + size_t(group) * CODES_BYTES;",
                "wire + size_t(group + 1) * CODES_BYTES;",
            ),
            Mutant("no end of the share", "decode_sum.cu", "< u32(share.granules);", "< 1;"),
            Mutant("first tile of a block only", "decode_sum.cu", "at += step", "at += 1 << 30"),
            Mutant("no end of y", "decode_sum.cu", "* 8, n, sum", "* 8, ~0u, sum"),
            Mutant("share's place in y", "decode_sum.cu", "share.first * BLOCK + ", ""),
            Mutant("share's place in the wire", "decode_sum.cu", "wires + share.offset", "wires"),
            Mutant("first shares no larger", "tile/share.cuh", "each + (number < more)", "each"),
            Mutant("offset of equal shares", "tile/share.cuh", "+ larger * difference}", "}"),
        ],
    ),
    "decode_sum_encode": (
        [*codec_tests("order_of", "blocks_of", "sum_of", "sum_equals", "sum_has"), "-k", "twoshot or special"],
        [
            Mutant(
                "no end of the share", "decode_sum_encode.cu", "if (group / GROUPS_OF_BLOCK < u32(blocks)) sum", "sum"
            ),
            Mutant("first tile only", "decode_sum_encode.cu", "blocks, tile, sum", "blocks, 0, sum"),
            Mutant("first group of the tile", "decode_sum_encode.cu", "tile * THREADS + threadIdx.x;", "threadIdx.x;"),
            Mutant("tiles overlap", "decode_sum_encode.cu", "tile += gridDim.x", "tile += gridDim.x + 1"),
            no_barrier("scratch reused at once", "tile/block_wire.cuh", "}"),
            Mutant("one block less", "decode_sum_encode.cu", "put(total, blocks,", "put(total, blocks - 1,"),
            Mutant(
                "stride of the ranks",
                "decode_sum_encode.cu",
                "wires, wire_bytes, blocks",
                "wires, wire_bytes - 1, blocks",
            ),
            Mutant(
                "wrong order of ranks",
                "tile/rank_sum.cuh",
                "wires[rank] = first_wire + rank * wire_bytes",
                "wires[rank] = first_wire + (RANKS - 1 - rank) * wire_bytes",
            ),
            no_barrier("no barrier", "tile/block_wire.cuh", "for (int i = threadIdx.x"),
            Mutant(
                "scale of the first block",
                "tile/block_wire.cuh",
                "smem_scales[threadIdx.x / GROUPS_OF_BLOCK] =",
                "smem_scales[0] =",
            ),
            Mutant("no end of the scales", "tile/block_wire.cuh", "if (at < scales_bytes(blocks)) scales", "scales"),
            Mutant("scales a block further", "decode_sum_encode.cu", "blocks, group);", "blocks + 1, group);"),
        ],
    ),
    "decode_sum_encode: packed": (
        [
            *codec_tests("sum_of_scales_that", "sum_of_scales", "sum_equals", "blocks_of", "sum_has"),
            "-k",
            "twoshot or scales",
        ],
        [
            Mutant("terms of rank 0", ADDING, "wires + rank * wire_bytes", "wires"),
            Mutant("second eight as the first", ADDING, "i / 2 ? codes[rank].y : codes[rank].x", "codes[rank].x"),
            Mutant("odd numbers as even ones", ADDING, "words[i % 2]", "words[0]"),
            Mutant("first term kept", ADDING, "scales[rank], rank == 0", "scales[rank], false"),
            Mutant("scale of the last rank", ADDING, "highest = max(highest, scales[rank])", "highest = scales[rank]"),
            Mutant("lowest of the last rank", ADDING, "lowest = min(lowest, scales[rank])", "lowest = scales[rank]"),
            Mutant("each lane for itself", ADDING, "!__all_sync(FULL_WARP, aligned && exact)", "!(aligned && exact)"),
            Mutant("always exact", ADDING, "__all_sync(FULL_WARP, aligned && exact)", "__all_sync(FULL_WARP, aligned)"),
            Mutant(
                "always aligned", ADDING, "is_aligned(wires, 8) && is_aligned(total, 8) && wire_bytes % 8 == 0", "true"
            ),
            Mutant("stride of any size", ADDING, " && wire_bytes % 8 == 0", ""),
            Mutant("scale of the half sum", ADDING, "__fmul_rn(largest, sum.unit)", "largest"),
            Mutant("factor of another scale", ADDING, "+ SPREAD_OF_RANKS - ELEMENT_BIAS", "+ SPREAD_OF_RANKS"),
            Mutant(
                "even and odd swapped", ADDING, "codes_of_parted(pairs, pairs + 2)", "codes_of_parted(pairs + 2, pairs)"
            ),
            Mutant("codes of a parted half", PACKED, "code_bytes(odd[0], odd[1]) << 4", "code_bytes(odd[0], odd[1])"),
            Mutant(
                "scale of every sixteen",
                ADDING,
                "total[scales_at + block] = u8(scale);\n  }\n}",
                "total[scales_at + sixteen] = u8(scale);\n  }\n}",
            ),
            Mutant("no end of the share", ADDING, "if (!inside) continue;", ""),
            Mutant("tiles overlap", ADDING, "tile += gridDim.x", "tile += gridDim.x + 1"),
            Mutant("first half of a warp's groups", ADDING, "round < 2", "round < 1"),
            Mutant("the same groups twice", ADDING, "round++, group += 32", "round++, group += 0"),
            Mutant("groups of another warp", ADDING, "(sixteen - threadIdx.x % 32) * 2", "sixteen - threadIdx.x % 32"),
            Mutant("scale of one group only", ADDING, "mine % GROUPS_OF_BLOCK == 0", "mine % 32 == 0"),
        ],
    ),
    "decode_sum_rmsnorm": (
        ["test_codec_kernels.py", "-k", "fused"],
        [
            Mutant("sum not rounded", "decode_sum_rmsnorm.cu", "to_float(Number<DTYPE>::one(sum[i]))", "sum[i]"),
            Mutant(
                "residual left alone", "decode_sum_rmsnorm.cu", "(residual + row + k) = rounded", "(residual + row + k)"
            ),
            Mutant("residual not added", "decode_sum_rmsnorm.cu", "__fadd_rn(v[i], ", "__fadd_rn(0.0f, "),
            Mutant("no barrier", "tile/block_sum.cuh", "__syncthreads();", ""),
            Mutant("weights shifted", "decode_sum_rmsnorm.cu", "(weight + k)", "(weight + (k + 8) % K)"),
            Mutant("every row of y the first", "decode_sum_rmsnorm.cu", "write(y + row,", "write(y,"),
            Mutant("row ignored", "decode_sum_rmsnorm.cu", "blockIdx.x * K;", "0 * K;"),
            Mutant("share of the first block", "decode_sum_rmsnorm.cu", "share_with<BlockWire>(n, shares, block)", "0"),
            Mutant("group of the whole", "decode_sum_rmsnorm.cu", " - share.first * GROUPS_OF_BLOCK", ""),
            Mutant("no larger shares", "tile/share.cuh", "granule < more * (each + 1) ?", "false ?"),
            Mutant(
                "epsilon outside the root", "decode_sum_rmsnorm.cu", "rsqrtf(mean + epsilon)", "rsqrtf(mean) + epsilon"
            ),
            Mutant("tail left out", ROW, "j < K; j += 8 * THREADS", "j + 8 * THREADS <= K; j += 8 * THREADS"),
            Mutant(
                "residual of the next row",
                "decode_sum_rmsnorm.cu",
                "load_eight(v, residual, row",
                "load_eight(v, residual, 0",
            ),
        ],
    ),
    "ptx": (["test_gemm_kernel.py"], ASSEMBLY),
    "ptx:flags": (["test_all_reduce_kernels.py", "-k", "oneshot"], FLAGS),
    "ptx:words": (["test_residual_norm.py"], WORDS),
    "all_reduce_oneshot": (
        ["test_all_reduce_kernels.py", "-k", "oneshot or slab"],
        [
            *MEETING,
            Mutant("wrong order of ranks", "all_reduce_oneshot.cu", "all.data(r, 0);", "all.data(RANKS - 1 - r, 0);"),
            Mutant(
                "from the own rank on", "all_reduce_oneshot.cu", "all.data(r, 0);", "all.data((r + rank) % RANKS, 0);"
            ),
            Mutant("no meeting", "all_reduce_oneshot.cu", "STEP == 0 && !all.meet", "false && !all.meet"),
            Mutant(
                "goes on without a peer",
                "all_reduce_oneshot.cu",
                "!all.meet(0, smem_missing, status, timeout_us))) return;",
                "!all.meet(0, smem_missing, status, timeout_us) && n == 0)) return;",
            ),
            no_barrier("scratch used again too early", "tile/block_wire.cuh", "}"),
            Mutant(
                "tiles of other blocks",
                "all_reduce_oneshot.cu",
                "int tile = blockIdx.x + MyTeam::number() * GRID; tile < tiles; tile += SUMS",
                "int tile = GRID - 1 - blockIdx.x + MyTeam::number() * GRID; tile < tiles; tile += SUMS",
            ),
            *IN_FLIGHT,
            *IN_TEAMS,
            Mutant("every fourth tile only", ONESHOT, "if (tile + i * MyTeam::NEXT < tiles)", "if (i == 0)"),
            Mutant(
                "first tile of the four", ONESHOT, "granules, tile + i * MyTeam::NEXT, v[i]", "granules, tile, v[i]"
            ),
            Mutant(
                "numbers of the first tile",
                ONESHOT,
                "groups[i] = MyTeam::group_to_encode(tile + i * MyTeam::NEXT)",
                "groups[i] = MyTeam::group_to_encode(tile)",
            ),
            Mutant("sums of the first tile", ONESHOT, "add_up(sum, raw[i])", "add_up(sum, raw[0])"),
            Mutant(
                "tiles left out", ONESHOT, "tile += IN_FLIGHT * MyTeam::NEXT", "tile += 2 * IN_FLIGHT * MyTeam::NEXT"
            ),
            Mutant("last tile left out", EITHER, " + THREADS - 1) / THREADS", ") / THREADS"),
            no_barrier(
                "epoch written by a thread that has not waited", "tile/slab.cuh", "if (threadIdx.x == 0) epochs()"
            ),
        ],
    ),
    "all_reduce_twoshot": (
        ["test_all_reduce_kernels.py", "-k", "twoshot or slab"],
        [
            *MEETING,
            Mutant("no first meeting", "all_reduce_twoshot.cu", "STEP == 0 && !all.meet(0", "false && !all.meet(0"),
            Mutant("no second meeting", "all_reduce_twoshot.cu", "STEP == 0 && !all.meet(1", "false && !all.meet(1"),
            Mutant("the same flags twice", "all_reduce_twoshot.cu", "all.meet(1", "all.meet(0"),
            Mutant(
                "wrong order of ranks",
                "all_reduce_twoshot.cu",
                "wires[r] = all.data(all.rank, r *",
                "wires[r] = all.data(all.rank, (RANKS - 1 - r) *",
            ),
            Mutant(
                "from the own rank on",
                "all_reduce_twoshot.cu",
                "wires[r] = all.data(all.rank, r *",
                "wires[r] = all.data(all.rank, (r + all.rank) % RANKS *",
            ),
            Mutant(
                "sum laid over the first step",
                "all_reduce_twoshot.cu",
                "RANKS * Place::bytes(n)",
                "all.rank * Place::bytes(n)",
            ),
            Mutant("no end of a share", "all_reduce_twoshot.cu", "if (!place.has(group)) continue;", ""),
            Mutant("places too close", "all_reduce_twoshot.cu", " + 15) / 16 * 16", ") / 16 * 16"),
            Mutant("stored in rank 0's place", TWOSHOT, "all.data(at[i].owner, mine)", "all.data(at[i].owner, 0)"),
            Mutant("stored in the own slab", TWOSHOT, "all.data(at[i].owner, mine)", "all.data(all.rank, mine)"),
            Mutant("own terms from rank 0's slab", TWOSHOT, "all.data(all.rank, r *", "all.data(0, r *"),
            Mutant("all shares from rank 0", TWOSHOT, "all.data(at[i].owner, total)", "all.data(0, total)"),
            Mutant(
                "never the own share",
                TWOSHOT,
                "(wrapped + number) % RANKS",
                "(wrapped + number % (RANKS - 1)) % RANKS",
            ),
            Mutant(
                "every rank in its own turn", TWOSHOT, "const size_t mine = all.rank", "const size_t mine = blockIdx.x"
            ),
            Mutant("neighbours have the same tile", TWOSHOT, "* 2 + blockIdx.x / (GRID / 2);", "* 2;"),
            Mutant("last turn left out", TWOSHOT, "< tiles % GRID", "< tiles % GRID - 1"),
            Mutant("turns of whole rounds only", TWOSHOT, "turns += first_tile(owner) < tiles % GRID", ""),
            Mutant("begins with rank 0's share", TWOSHOT, "(wrapped + number) % RANKS", "number % RANKS"),
            Mutant("begins a share too early", TWOSHOT, "+ TURNED - 1) / TURNED", ") / TURNED"),
            Mutant("place beyond the grid", TWOSHOT, "turned < GRID ?", "turned <= GRID ?"),
            Mutant(
                "adds the tiles of other blocks", TWOSHOT, "int tile = first_tile(all.rank);", "int tile = blockIdx.x;"
            ),
            Mutant("adds the tiles of rank 0", TWOSHOT, "tile = first_tile(all.rank);", "tile = first_tile(0);"),
            Mutant("sends what no turn is left for", TWOSHOT, "if (turn + i * Wire::TEAMS >= turns) break;", ""),
            Mutant("waits for itself", "tile/slab.cuh", "sent() + blockIdx.x - GRID / 2", "sent() + blockIdx.x"),
            Mutant(
                "does not tell that it has sent", TWOSHOT, "if (STEP == 0) all.let_second", "if (false) all.let_second"
            ),
            Mutant(
                "sent in the epoch before",
                "tile/slab.cuh",
                "sent() + blockIdx.x, epoch",
                "sent() + blockIdx.x, epoch - 1",
            ),
            Mutant("told in the place of the epochs", "tile/slab.cuh", "return epochs() + GRID", "return epochs()"),
            no_barrier("scratch used again too early", "tile/block_wire.cuh", "}"),
            *IN_FLIGHT,
            *IN_TEAMS,
            Mutant(
                "first number of the share",
                "all_reduce_twoshot.cu",
                "Place(n, at[i].owner).first / 8 + MyTeam::group_to_encode(at[i].tile)",
                "MyTeam::group_to_encode(at[i].tile)",
            ),
            Mutant(
                "own sums of the first tile",
                "all_reduce_twoshot.cu",
                "WireByEight::add_up(sum, raw[i])",
                "WireByEight::add_up(sum, raw[0])",
            ),
            Mutant(
                "sums in the first tile",
                "all_reduce_twoshot.cu",
                "granules, tile + i * GRID, sum",
                "granules, tile, sum",
            ),
            Mutant(
                "first tile collected", "all_reduce_twoshot.cu", "Wire::add_up(v, raw[i])", "Wire::add_up(v, raw[0])"
            ),
            Mutant("stride of a tile", TWOSHOT, "number / RANKS * GRID", "number / RANKS"),
        ],
    ),
}


class FirstFailure:
    """A pytest plugin that keeps the name of the first test that failed."""

    test = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.test:
            self.test = report.nodeid


def run_tests(mutant: Mutant, tests: list[str], likely: str | None) -> tuple[int, str, str]:
    """pytest's status on the mutated sources, the test that failed, and what pytest said.

    likely  the test that is expected to fail; the others run only if it does not

    Changes the process, which is to end after that.
    """
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()) as said, redirect_stderr(said):
        sources = Path(folder) / "cuda_src"
        shutil.copytree(ROOT / "cuda_src", sources)
        mutated = mutant.plant((sources / mutant.file).read_text())
        (sources / mutant.file).write_text(WEAKER.read_text() + mutated)
        os.environ["CUTPQ_MUTATED_SOURCES"] = str(sources)
        os.chdir(Path(__file__).parent)
        first, status = FirstFailure(), 0
        for chosen in ([[str(ROOT / likely)]] if likely else []) + [tests]:
            status = pytest.main([*QUICK, "-x", "-q", "--tb=line", "-m", "not gpu", *chosen], plugins=[first])
            if status == 1:
                break
    return int(status), first.test, said.getvalue()


def is_caught(mutant: Mutant, status: int, said: str) -> bool:
    """Whether a test has failed. SystemExit where the tests did not run, or not on what was meant."""
    if status not in (0, 1):  # no tests, or an error outside of them
        raise SystemExit(f"{mutant.name}: pytest did not run the tests\n{said}")
    if "CompileError" in said:
        raise SystemExit(f"{mutant.name}: is no bug, for it does not compile\n{said}")
    return status == 1


def main(kernels: list[str], record: bool) -> int:
    """Run the mutants of these kernels, or of all; 0 if all are caught."""
    suites = {name: suite for name, suite in SUITES.items() if not kernels or name.partition(":")[0] in kernels}
    caught_by = json.loads(CAUGHT_BY.read_text())
    # Once: each mutant's process is a copy of this one, which has loaded what all need.
    executor.library()
    nvrtc.find()
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # none is needed, and they take longer than most tests here
    with redirect_stdout(StringIO()):
        pytest.main([*QUICK, "--collect-only", "-q", str(Path(__file__).parent)])
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUTPQ_CACHE_DIR", folder)  # the kernels without a bug are compiled once for all
        missed, total = plant_all(suites, caught_by)
    print(f"{total - missed}/{total} planted bugs caught")
    if record:
        CAUGHT_BY.write_text(
            json.dumps({name: caught_by[name] for name in SUITES if name in caught_by}, indent=1) + "\n"
        )
    return 1 if missed else 0


def plant_all(
    suites: dict[str, tuple[list[str], list[Mutant]]], caught_by: dict[str, dict[str, str]]
) -> tuple[int, int]:
    """Plants each bug in a process of its own. Puts what saw it into caught_by; returns the missed, and all."""
    missed = total = 0
    with get_context("fork").Pool(maxtasksperchild=1) as pool:
        started = {
            name: [
                pool.apply_async(run_tests, (mutant, tests, caught_by.get(name, {}).get(mutant.name)))
                for mutant in mutants
            ]
            for name, (tests, mutants) in suites.items()
        }
        for name, (_, mutants) in suites.items():
            tests_of = {}
            for mutant, result in zip(mutants, started[name], strict=True):
                status, tests_of[mutant.name], said = result.get()
                if not is_caught(mutant, status, said):
                    print(f"not caught: {name}: {mutant.name}", flush=True)
                    missed += 1
            caught_by[name] = tests_of
            total += len(mutants)
            print(f"{name}: {len(mutants)} bugs", flush=True)
    return missed, total


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kernels", nargs="*", help="those whose bugs are planted; default: all")
    parser.add_argument("--record", action="store_true", help=f"write {CAUGHT_BY.name}")
    arguments = parser.parse_args()
    sys.exit(main(arguments.kernels, arguments.record))
