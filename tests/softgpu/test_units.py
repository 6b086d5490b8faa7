"""The executor on small kernels: right ones run right in every order of blocks and warps, wrong ones are named."""

import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from cutpq.kernels import executor, nvrtc
from cutpq.kernels.executor import ExecutorError

HERE = Path(__file__).resolve().parent
UNITS = (HERE / "units.cu").read_text()
CUDA_SRC = HERE.parents[1] / "cuda_src"
SEEDS = range(4)


def kernel(name, mode="fast", *replacements):
    """A kernel of units.cu with some of its text exchanged."""
    source = UNITS
    for old, new in replacements:
        assert old in source, f"units.cu has no longer {old!r}"
        source = source.replace(old, new)
    source = source.replace('#include "named_barrier.cuh"', (HERE / "include" / "named_barrier.cuh").read_text())
    source = source.replace('#include "weaker_order.cuh"', (HERE / "include" / "weaker_order.cuh").read_text())
    return executor.build(name, source, CUDA_SRC, mode)


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# ---- instructions


def test_warp_operations(mode):
    v = np.random.default_rng(0).integers(0, 2**32, 32, dtype=np.uint32)
    out = np.zeros((3, 32), np.uint32)
    kernel("warp_ops", mode)((1,), (32,), (v, out))
    later = np.where(np.arange(32) < 29, np.roll(v, -3), v)
    b = np.stack([v, later], 1).view(np.uint8)  # bytes 0-3 of v, 4-7 of later
    permuted = np.stack([b[:, 0], b[:, 4], (b[:, 5] >> 7) * 255, (b[:, 1] >> 7) * 255], 1)
    assert (out[0] == np.uint32(v.sum(dtype=np.uint64) & 0xFFFFFFFF)).all()
    assert (out[1] == v ^ later ^ 0x0FF00FF0).all()
    assert (out[2] == np.ascontiguousarray(permuted).view(np.uint32)[:, 0]).all()


@pytest.mark.parametrize("model", [80, 90])
def test_matrix_product(mode, settings, model):
    settings.arch = model
    a = numbers(16, 16).astype(ml_dtypes.bfloat16)
    b = numbers(8, 16, seed=1).astype(ml_dtypes.bfloat16)
    d = np.full((16, 8), np.nan, np.float32)
    kernel("matrix_product", mode)((1,), (32,), (a, b, d), shared_mem=768)
    exact = a.astype(np.float64) @ b.astype(np.float64).T
    assert (np.abs(d - exact) <= 2e-6 * (np.abs(a.astype(float)) @ np.abs(b.astype(float)).T)).all()


def exact_fma(a, b, c, dtype):
    """a * b + c as a fraction, rounded once to dtype: the nearer of two neighbours, the even one on a tie."""
    exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    near = np.array(float(exact), dtype)
    candidates = [near, np.nextafter(near, dtype(np.inf)), np.nextafter(near, dtype(-np.inf))]
    return min(candidates, key=lambda v: (abs(Fraction(float(v)) - exact), int(v.view(np.uint16)) & 1))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("fma_pairs", np.float16),
        ("fma_bfloat_pairs", ml_dtypes.bfloat16),
    ],
)
def test_fma_rounds_once(name, dtype):
    rng = np.random.default_rng(3)
    a, b = (rng.standard_normal(2048).astype(dtype) for _ in range(2))
    # near-ties: an addend that puts the product's tail beyond double's reach or just beside a half unit
    c = (rng.standard_normal(2048) * 2.0 ** rng.integers(-12, 12, 2048)).astype(dtype)
    d = np.zeros(2048, dtype)
    kernel(name)((1,), (1024,), (a, b, c, d))
    want = np.array([exact_fma(*abc, dtype) for abc in zip(a, b, c, strict=True)], dtype)
    assert (d.view(np.uint16) == want.view(np.uint16)).all()


# ---- order: any schedule of a right program gives the right result


@pytest.mark.parametrize("seed", SEEDS)
def test_ring(mode, settings, seed):
    settings.seed = seed
    data, out = np.random.default_rng(0).integers(0, 2**32, (2, 7, 32, 4), dtype=np.uint32)
    kernel("ring", mode)((1,), (32,), (data, out, np.int32(7)), shared_mem=1536)
    assert (out == data[:, ::-1]).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_named_barriers(mode, settings, seed):
    settings.seed = seed
    a, out = numbers(9, 32), np.zeros((3, 32), np.float32)
    kernel("producer", mode)((1,), (128,), (a, out, np.int32(9)), shared_mem=128)
    assert np.allclose(out, a.sum(0)[::-1] * np.arange(1, 4)[:, None], rtol=1e-5)


def last_block_sums(kernel_):
    a = np.arange(6 * 32, dtype=np.float32).reshape(6, 32)
    out = np.full(32, np.nan, np.float32)
    kernel_((6,), (32,), (a, np.full_like(a, np.nan), out, np.zeros(1, np.uint32)), shared_mem=16)
    return (out == a.sum(0)).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_last_block_sums(mode, settings, seed):
    settings.seed = seed
    assert last_block_sums(kernel("last_block_sums", mode))


def exchange(kernel_, world=4, n=100):
    ins = [np.full(n, 1.0 + r, np.float32) for r in range(world)]
    parts, outs = ([np.full(n, np.nan, np.float32) for _ in ins] for _ in range(2))
    flags = [np.zeros(world, np.uint32) for _ in ins]
    executor.launch(
        [
            (kernel_, (1,), (64,), (parts, flags, ins[r], outs[r], np.int32(n), np.int32(r), np.int32(world)), 0)
            for r in range(world)
        ]
    )
    return all((out == sum(ins)).all() for out in outs)


@pytest.mark.parametrize("seed", SEEDS)
def test_four_ranks_exchange(mode, settings, seed):
    settings.seed = seed
    assert exchange(kernel("exchange", mode))


def test_waiting_for_a_block_that_has_not_started_is_a_hang(settings):
    settings.max_resident = 1
    with pytest.raises(ExecutorError, match=r"livelock|deadlock"):
        exchange(kernel("exchange"))


# ---- mistakes in memory: each is named, with its line


def run_ring(mode, *replacements, shared_mem=1536, n=7, rows=7):
    data = np.random.default_rng(0).integers(0, 2**32, (rows, 32, 4), dtype=np.uint32)
    out = np.zeros((n, 32, 4), np.uint32)
    kernel("ring", mode, *replacements)((1,), (32,), (data, out, np.int32(n)), shared_mem=shared_mem)
    return (out == data[:n, ::-1]).all()


BARRIER = "    __syncthreads();  // stage i has landed for all\n"
LOAD = "if (next < n) cp_async_16(shared_address(stages + next % STAGES"


@pytest.mark.parametrize(
    ("message", "replacement"),
    [
        ("in flight", ("cp_async_wait<STAGES - 2>", "cp_async_wait<STAGES - 1>")),
        ("uninitialized|race: not ordered", (BARRIER, "")),
        ("in flight|race: not ordered", (LOAD, LOAD.replace("next % STAGES", "(next + 1) % STAGES"))),
        (
            "not waited for",
            ("out[i * 32", "if (i + 1 == n) cp_async_16(shared_address(stages + 32), in);    out[i * 32"),
        ),
        ("red zone", ("31 - t]", "127 - t]")),
        ("red zone", ("next % STAGES * 32", "next * 32")),
        ("invalid global access|past the end", ("in + next * 32 + t", "in + (next + 1) * 32 + t")),
        ("misaligned", ("in + next * 32 + t)", "(const char*)(in + next * 32 + t - 1) + 8)")),
        (
            "have ended",
            (
                "const int t = threadIdx.x;\n  for (int i = 0; i < STAGES",
                "const int t = threadIdx.x;\n  if (t > 30) return;\n  for (int i = 0; i < STAGES",
            ),
        ),
    ],
)
def test_check_names_the_mistake(message, replacement):
    with pytest.raises(ExecutorError, match=message):
        run_ring("check", replacement)


def test_fast_mode_gives_wrong_numbers_not_lucky_ones():
    assert not run_ring("fast", (LOAD, LOAD.replace("next % STAGES", "(next + 1) % STAGES")))


def test_fast_mode_sees_copies_that_nobody_waited_for():
    with pytest.raises(ExecutorError, match="never waited for"):
        run_ring("fast", ("cp_async_wait<STAGES - 2>", "cp_async_wait<STAGES - 1>"))


def test_writing_past_a_shared_array_is_found_without_checks():
    with pytest.raises(ExecutorError, match="out of bounds: 16 bytes at 1536 of 1536 bytes of shared memory"):
        run_ring("fast", (BARRIER, BARRIER + "    if (t == 0) stages[STAGES * 32] = in[0];\n"))


def test_reading_shared_memory_before_writing_it():
    with pytest.raises(ExecutorError, match="uninitialized"):
        kernel("last_block_sums", "check", ("if (t == 0) *before = atomic_add_acq_rel(arrivals, 1);", ""))(
            (1,), (32,), (numbers(1, 32), numbers(1, 32), numbers(32), np.zeros(1, np.uint32)), shared_mem=16
        )


def test_global_read_past_the_end(mode):
    with pytest.raises(ExecutorError, match="past the end of an allocation of 3584 bytes"):
        run_ring(mode, n=8)


# ---- mistakes in order: found even where this schedule gave the right result


@pytest.mark.parametrize(
    "replacement",
    [
        ("atomic_add_acq_rel", "atomic_add_relaxed"),
        ("  __syncthreads();  // partial sums stored\n", ""),
        ("  __syncthreads();  // count known\n", ""),
    ],
)
def test_last_block_sums_needs_every_step(replacement):
    with pytest.raises(ExecutorError, match=r"race: not ordered|uninitialized"):
        last_block_sums(kernel("last_block_sums", "check", replacement))


def test_relaxed_flag_is_a_race():
    with pytest.raises(ExecutorError, match=r"read of global memory at byte 0 .*race: not ordered"):
        exchange(kernel("exchange", "check", ("st_release_sys(flags", "st_relaxed_sys(flags")))


@pytest.mark.parametrize("wide", ["st_release_sys", "ld_acquire_sys"])
def test_flag_of_one_device_is_too_weak_for_two(wide):
    with pytest.raises(ExecutorError, match=r"atomic access to global memory .*race: not ordered"):
        exchange(kernel("exchange", "check", (f"{wide}(flags", f"{wide[:-4]}(flags")))


def sums_one_after_the_other(as_streams, seed):
    """Block sums of a sum of blocks: the second launch reads what the first has written."""
    executor.settings.seed = seed
    sums = kernel("last_block_sums", "check")
    a, b, out = np.ones((4, 32), np.float32), np.zeros((4, 32), np.float32), np.zeros((2, 32), np.float32)
    arrivals = np.zeros((2, 1), np.uint32)
    first = (sums, (4,), (32,), (a, b, out[0], arrivals[0]), 16)
    second = (sums, (4,), (32,), (b, np.zeros_like(b), out[1], arrivals[1]), 16)
    executor.launch([[first, second]] if as_streams else [first, second])
    return out


@pytest.mark.parametrize("seed", SEEDS)
def test_launches_of_one_device_are_ordered(settings, seed):
    assert (sums_one_after_the_other(True, seed) == 4).all()


def test_launches_of_two_devices_are_not(settings):
    with pytest.raises(ExecutorError, match=r"read of global memory at byte 0 .*race: not ordered"):
        sums_one_after_the_other(False, seed=0)


def test_relaxed_counter_between_two_fences_is_none():
    assert last_block_sums(
        kernel(
            "last_block_sums",
            "check",
            (
                "*before = atomic_add_acq_rel(arrivals, 1);",
                "{ __threadfence(); *before = atomic_add_relaxed(arrivals, 1); __threadfence(); }",
            ),
        )
    )


def test_missing_named_barrier_is_a_race():
    unsynchronised = ("if (i) bar_sync", "if (0) bar_sync"), ("if (i + 1 < n)", "if (0)")
    producer = kernel("producer", "check", *unsynchronised)
    with pytest.raises(ExecutorError, match=r"race: not ordered|deadlock"):
        producer((1,), (128,), (numbers(9, 32), np.zeros(96, np.float32), np.int32(9)), shared_mem=128)


def test_missing_syncwarp_is_a_race():
    with pytest.raises(ExecutorError, match=r"race: not ordered|uninitialized"):
        kernel("matrix_product", "check", ("__syncwarp();", ""))(
            (1,), (32,), (numbers(16, 8), numbers(8, 8), np.zeros((16, 8), np.float32)), shared_mem=768
        )


def test_divergent_collective():
    with pytest.raises(ExecutorError, match="does not take part"):
        kernel("warp_ops", "fast", ("const u32 later", "if (t == 5) return;\n  const u32 later"))(
            (1,), (32,), (np.zeros(32, np.uint32), np.zeros((3, 32), np.uint32))
        )


# ---- calling


def test_bank_conflicts_of_ldmatrix_are_counted(settings):
    settings.counts = []
    kernel("matrix_product")(
        (1,), (32,), (numbers(16, 8), numbers(8, 8), np.zeros((16, 8), np.float32)), shared_mem=768
    )
    (line,) = settings.counts
    loads = line["shared_loads"]
    assert loads["least_passes"] == 8  # of two times four matrices
    assert loads["passes"] == 16  # their rows are 32 bytes apart, so rows 0 and 4 share banks


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((np.zeros((9, 32), np.float32), np.zeros(96, np.float32), np.int64(9)), "argument 2 of producer has 8 bytes"),
        ((np.zeros((9, 32), np.float32), np.zeros(96, np.float32)), "takes 3 arguments, 2 given"),
        ((np.zeros((9, 32), np.float32), 7, np.int32(9)), "argument 1 of producer is the Python number 7"),
        ((np.zeros((9, 64), np.float32)[:, ::2], np.zeros(96, np.float32), np.int32(9)), "contiguous"),
    ],
)
def test_wrong_arguments(args, message):
    with pytest.raises(ExecutorError, match=message):
        kernel("producer")((1,), (128,), args, shared_mem=128)


def test_compiler_errors_are_shown():
    with pytest.raises(nvrtc.CompileError, match="undeclared_name"):
        kernel("warp_ops", "fast", ("out[t] = sum;", "out[t] = undeclared_name;"))


# ---- threads: ranks of one process launch at the same time


def test_threads_launch_one_by_one(settings):
    settings.seed = 2
    data = np.random.default_rng(0).integers(0, 2**32, (6, 7, 32, 4), dtype=np.uint32)

    def rank(own):
        out = np.zeros_like(own)
        for _ in range(20):
            kernel("ring")((1,), (32,), (own, out, np.int32(7)), shared_mem=1536)
        return (out == own[:, ::-1]).all()

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(rank, data))


def test_watchdog_ends_a_loop_in_any_thread(settings):
    settings.timeout_s = 1
    endless = kernel("warp_ops", "fast", ("  out[t] = sum;", '  while (true) asm volatile("");\n  out[t] = sum;'))
    with ThreadPoolExecutor(1) as pool:
        launch = pool.submit(endless, (1,), (32,), (np.zeros(32, np.uint32), np.zeros((3, 32), np.uint32)))
        with pytest.raises(ExecutorError, match="watchdog"):
            launch.result()


def test_ranks_that_come_at_once_compile_the_executor_once(tmp_path, monkeypatch):
    calls = []

    def compile_library(sources, path):
        calls.append(path)
        time.sleep(0.2)
        path.write_bytes(b"")

    monkeypatch.setenv("CUTPQ_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(executor, "_compile_library", compile_library)
    with ThreadPoolExecutor(4) as pool:
        paths = {future.result() for future in [pool.submit(executor.library_path) for _ in range(4)]}
    assert calls == list(paths)
