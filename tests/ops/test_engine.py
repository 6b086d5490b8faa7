"""The engine for NumPy arrays against the float64 formulas: bounds of float32 sums, exact where nothing is rounded."""

import gc
import platform
import sys
import threading
import time
from dataclasses import replace
from functools import partial

import ml_dtypes
import numpy as np
import pytest
from assertions import assert_bounded, assert_exact, assert_gemm_close
from jobs import run
from random_weight import random_weight
from threadpoolctl import ThreadpoolController

from cutpq.array import keep_11_bits, round_to, to_float32
from cutpq.model import formulas as model_formulas
from cutpq.ops import formulas
from cutpq.ops.activation import activate
from cutpq.ops.dequant import dequantize
from cutpq.ops.engine import elementwise, few_rows, memory, threads
from cutpq.ops.engine.attention import attention
from cutpq.ops.engine.choice import uses_engine
from cutpq.ops.engine.elementwise import rotate, spread
from cutpq.ops.engine.product import fill_symmetric, gram, pieces, product
from cutpq.ops.engine.weight import EngineWeight
from cutpq.ops.gather import gather_columns, rmsnorm_gather
from cutpq.ops.gemm import gated_matmul, matmul, prepare
from cutpq.ops.residual_norm import residual_norm
from cutpq.weights.pack import interleave
from cutpq.weights.permutation import sort_groups
from cutpq.weights.weight import PlainWeight

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
EPS = {np.dtype(np.float16): 2.0**-11, BFLOAT16: 2.0**-8, np.dtype(np.float32): 2.0**-24}


@pytest.fixture(params=["in blocks", "float32 copy", "packed"])
def host_memory(request, monkeypatch):
    """With memory for float32 copies of every weight, by a BLAS with kernels for few rows and without; with none."""
    monkeypatch.setattr(memory, "_budget", lambda: 0 if request.param == "packed" else 1 << 40)
    monkeypatch.setattr(few_rows, "has_kernels", lambda: request.param == "in blocks")


def numbers(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


# ---- products


@pytest.mark.parametrize("M", [1, 256, 700])
def test_a_product_in_pieces_is_the_product_whatever_the_threads(M, monkeypatch):
    a, b = numbers(M, 300), numbers(300, 77, seed=1)
    want = a.astype(np.float64) @ b.astype(np.float64)
    found = []
    for limit in (1, 3):
        monkeypatch.setattr(threads._state, "limit", limit)
        found.append(product(a, b))
        assert_exact(product(a.T.copy().T, b), found[0])
    assert_exact(found[1], found[0])
    assert_bounded(found[0], want, 300 * 2.0**-24 * (np.abs(a).astype(np.float64) @ np.abs(b)))


@pytest.mark.parametrize("step", [40, 300, 1000])
def test_blocks_of_a_square_are_the_square(step):
    x = numbers(50, 700)
    H = np.full((700, 700), np.nan, np.float32)
    for start in range(0, 700, step):
        columns = slice(start, min(start + step, 700))
        fill_symmetric(H, columns, gram(x, columns))
    magnitude = np.abs(x).astype(np.float64)
    assert_bounded(H, x.T.astype(np.float64) @ x, 50 * 2.0**-24 * (magnitude.T @ magnitude))
    assert_exact(H, H.T.copy())


@pytest.mark.parametrize("n", [0, 1, 256, 700])
def test_pieces_are_all_once(n):
    assert [i for part in pieces(n) for i in range(n)[part]] == list(range(n))


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("is_sorted", [False, True])
@pytest.mark.parametrize("M", [1, 5, 33])
def test_product_is_within_the_bound(host_memory, dtype, bits, is_sorted, M):
    w = random_weight(321, 136, 32, bits=bits, bias=True)
    w = sort_groups(w)[0] if is_sorted else w
    x = numbers(M, w.K, dtype=dtype)
    rounded = dequantize(w, np.float16 if dtype == np.float32 else dtype)
    for weight in (w, prepare(w, np)):
        assert_gemm_close(matmul(x, weight), x, rounded, w.bias)


@pytest.mark.parametrize("kept", EPS)
@pytest.mark.parametrize("dtype", EPS)
def test_plain_weights_are_rounded_to_the_dtype_of_x(host_memory, dtype, kept):
    w = PlainWeight(numbers(96, 40, seed=1, dtype=kept), numbers(40, seed=2))
    x = numbers(7, 96, dtype=dtype)
    assert_gemm_close(matmul(x, prepare(w, np)), x, w.weight.astype(dtype), w.bias)


def test_a_product_of_many_pieces_holds_every_column(monkeypatch, host_memory):
    monkeypatch.setattr("cutpq.ops.engine.weight._PIECE", 64 * 256)
    w = random_weight(256, 200, 64, exact=True)
    x = np.random.default_rng(1).integers(-1, 2, (9, 256)).astype(np.float16)
    assert_exact(matmul(x, prepare(w, np)), (x.astype(np.float64) @ dequantize(w)).astype(np.float16))


def test_another_dtype_rounds_the_weights_anew(host_memory):
    w = random_weight(64, 32, 32)
    prepared = prepare(w, np)
    for dtype in (np.float16, BFLOAT16, np.float16):
        x = np.eye(64, dtype=dtype)
        assert_exact(matmul(x, prepared), dequantize(w, dtype))
        assert_exact(matmul(x[:5], prepared), dequantize(w, dtype)[:5])


@pytest.mark.parametrize("limit", [1, 3])
@pytest.mark.parametrize("M, K, N", [(1, 5, 3), (2, 700, 64), (7, 3, 130), (40, 2000, 200), (3, 0, 5), (3, 5, 0)])
def test_a_product_by_blocks_holds_every_row_and_column(M, K, N, limit, monkeypatch):
    monkeypatch.setattr(threads._state, "limit", limit)
    rng = np.random.default_rng(M)
    x, w = (rng.integers(-3, 4, shape).astype(np.float32) for shape in ((M, K), (N, K)))
    blocks = few_rows.in_blocks(w.T)
    assert blocks.nbytes == few_rows.nbytes(K, N)
    found = few_rows.product(x, blocks, limit)
    assert_exact(found[:, :N], x @ w.T)
    assert_exact(found[:, N:], np.zeros((M, -N % 64), np.float32))


def test_few_rows_take_blocks_where_the_blas_has_kernels_for_them(monkeypatch):
    for has_kernels in (False, True):
        monkeypatch.setattr(few_rows, "has_kernels", lambda: has_kernels)  # noqa: B023  called before the loop goes on
        w = EngineWeight(random_weight(64, 64, 32))
        sizes = []
        for M in (1, 49, 48):
            w.product(numbers(M, 64))
            sizes.append(w.nbytes)
        copy = 4 * 64 * 64
        assert sizes[1] == sizes[0]
        assert sizes[2] == sizes[0] + copy * has_kernels
        assert sizes[0] > copy


def test_a_weight_that_is_not_prepared_is_never_in_blocks(monkeypatch):
    monkeypatch.setattr(few_rows, "has_kernels", lambda: True)
    monkeypatch.setattr(few_rows, "in_blocks", None)
    w, x = random_weight(64, 96, 32), numbers(5, 64)
    assert_gemm_close(matmul(x, w), x, dequantize(w), None)
    with pytest.raises(TypeError, match="not callable"):
        matmul(x, prepare(w, np))


@pytest.mark.parametrize("target, has", [("SkylakeX", True), ("Haswell", False), (None, False)])
def test_kernels_are_known_by_the_target_of_the_blas(target, has, monkeypatch):
    class Controller:
        def select(self, internal_api):
            assert internal_api == "openblas"
            return self

        def info(self):
            return [{"architecture": target}] if target else []

    monkeypatch.setattr(few_rows, "ThreadpoolController", Controller)
    assert few_rows.has_kernels.__wrapped__() is has


def test_all_ranks_get_the_same_bits_from_the_same_call():
    x, w = numbers(17, 512), prepare(random_weight(512, 96, 64), np)
    assert_exact(matmul(x, w), matmul(x.copy(), w))


@pytest.mark.parametrize("kind", formulas.ACTIVATIONS)
@pytest.mark.parametrize("dtype", EPS)
def test_gate_and_up_are_gated_in_float32_and_rounded_once(kind, dtype):
    gate, up = (random_weight(64, 48, 32, seed=i, g_idx=np.arange(64) // 32, exact=True) for i in (1, 2))
    x = np.random.default_rng(3).integers(-1, 2, (11, 64)).astype(dtype)
    g, u = (x.astype(np.float64) @ dequantize(w).astype(np.float64) for w in (gate, up))
    exact = formulas.activate(kind, g.astype(np.float32)).astype(np.float64) * u
    bound = EPS[np.dtype(dtype)] * 1.01 * np.abs(exact) + 2.0**-20 * (np.abs(g * u) + 2.0**-4)
    joined = replace(gate, codes=np.hstack([gate.codes, up.codes]), scales=np.hstack([gate.scales, up.scales]),
                     zeros=np.hstack([gate.zeros, up.zeros]))  # fmt: skip
    assert_bounded(gated_matmul(x, prepare(interleave(gate, up), np), activation=kind), exact, bound)
    assert_bounded(gated_matmul(x, prepare(joined, np), activation=kind, side_by_side=True), exact, bound)


# ---- memory, threads, and who computes


KEEPS = """
import resource
import numpy as np
from cutpq.ops.engine.weight import EngineWeight
from cutpq.weights.weight import PlainWeight

EngineWeight(PlainWeight(np.ones((8, 8), np.float32)))

def faults(nbytes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(nbytes, np.uint8).fill(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

for nbytes in 1 << 20, 3 << 20, 9 << 20:
    print(faults(nbytes), faults(nbytes))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator decides for itself")
@pytest.mark.parametrize("chosen", [False, True])
def test_freed_memory_serves_the_next_array(chosen):
    """Its pages are there already: writing them faults no more. What a user's MALLOC_ variable chooses stays."""
    job = run([sys.executable, "-c", KEEPS], **({"MALLOC_TRIM_THRESHOLD_": "131072"} if chosen else {}))
    assert job.status == 0, job.err
    for first, second in (map(int, line.split()) for line in job.out.splitlines()):
        assert first > 50
        assert (second > 50) == chosen


@pytest.fixture
def room_for(monkeypatch):
    """room_for(bytes): from now on so many bytes are left, beside those of weights that live already."""
    gc.collect()
    before = dict(memory._bytes)

    def room(nbytes):
        monkeypatch.setattr(memory, "_bytes", dict.fromkeys(memory._bytes, 0))
        monkeypatch.setattr(memory, "_budget", lambda: nbytes)
        monkeypatch.setattr(memory, "_told", False)

    yield room
    gc.collect()
    monkeypatch.undo()
    assert memory._bytes == before


def test_memory_is_given_back_with_the_weight(room_for, capsys):
    room_for(4 * 64 * 32)
    x, first, second = numbers(1, 64), *(EngineWeight(random_weight(64, 32, 32, seed=i)) for i in (1, 2))
    packed = first.nbytes
    assert packed < 64 * 32
    for weight in (first, second):
        weight.product(x)
    assert first.nbytes == packed + 4 * 64 * 32
    assert second.nbytes == packed
    assert "CUTPQ_HOST_MEMORY: the rest stay packed" in capsys.readouterr().err
    del first, weight
    gc.collect()
    third = EngineWeight(random_weight(64, 32, 32))
    third.product(x)
    assert third.nbytes > packed


def quantized(seed):
    return random_weight(64, 64, 32, seed=seed)


def plain(seed, dtype):
    return PlainWeight(numbers(64, 64, seed=seed, dtype=dtype))


@pytest.mark.parametrize(
    "make, first, second",
    [
        (quantized, [2, 1, 1], 2),
        (partial(plain, dtype=np.float16), [2, 1, 1], 2),
        (partial(plain, dtype=np.float32), [1, 1, 1], 1),  # whose first copies are the weights themselves
    ],
    ids=["quantized", "float16", "float32"],
)
def test_second_copies_leave_room_for_every_first_one(make, first, second, room_for, monkeypatch, capsys):
    monkeypatch.setattr(few_rows, "has_kernels", lambda: True)
    copy = 4 * 64 * 64
    room_for(4 * copy)
    x, weights = numbers(2, 64), [EngineWeight(make(i)) for i in range(3)]
    packed = weights[0].nbytes
    for weight in weights:
        weight.product(x)
    assert [(weight.nbytes - packed) // copy for weight in weights] == first
    assert not capsys.readouterr().err
    del weight, weights[0]
    gc.collect()
    weights.append(EngineWeight(make(3)))
    weights[-1].product(x)
    assert (weights[-1].nbytes - packed) // copy == second


def test_second_copies_that_are_made_count(room_for, monkeypatch, capsys):
    """A model that is loaded later may find too little memory; then it stays packed."""
    monkeypatch.setattr(few_rows, "has_kernels", lambda: True)
    room_for(2 * 4 * 64 * 64)
    x, first = numbers(2, 64), EngineWeight(quantized(0))
    first.product(x)
    later = EngineWeight(quantized(1))
    packed = later.nbytes
    later.product(x)
    assert later.nbytes == packed
    assert first.nbytes == packed + 2 * 4 * 64 * 64
    assert "the rest stay packed" in capsys.readouterr().err


@pytest.mark.parametrize("text, nbytes", [("4096", 4096), ("3K", 3072), ("2M", 2 << 20), ("5G", 5 << 30)])
def test_memory_is_read_with_its_unit(monkeypatch, text, nbytes):
    monkeypatch.setenv("CUTPQ_HOST_MEMORY", text)
    assert memory._budget.__wrapped__() == nbytes


def test_a_wrong_memory_is_named(monkeypatch):
    monkeypatch.setenv("CUTPQ_HOST_MEMORY", "half")
    with pytest.raises(ValueError, match="CUTPQ_HOST_MEMORY='half' is not a number of bytes"):
        memory._budget.__wrapped__()


def test_ranks_share_the_cores(monkeypatch):
    monkeypatch.setattr(threads, "cores", lambda: 8)
    monkeypatch.setattr(threads._state, "limit", 8)
    for ranks, each in ((1, 8), (3, 2), (8, 1), (20, 1)):
        with threads.sharing_cores(ranks):
            assert threads.limit() == each
    assert threads.limit() == 8


@pytest.mark.parametrize("limit", [1, 2])
def test_results_come_in_order_and_an_error_where_it_belongs(limit, monkeypatch):
    monkeypatch.setattr(threads._state, "limit", limit)

    def task(i):
        time.sleep(0.002 * (i % 3))  # some later ones are done first
        if i == 7:
            raise OSError("the seventh")
        return i

    assert list(threads.in_order(partial(task, i) for i in range(7))) == list(range(7))
    found = []
    with pytest.raises(OSError, match="the seventh"):
        found.extend(threads.in_order(partial(task, i) for i in range(20)))
    assert found == list(range(7))


def test_few_results_are_made_before_they_are_taken(monkeypatch):
    """What is held at once must not grow with the number of tasks."""
    monkeypatch.setattr(threads._state, "limit", 2)
    begun = []
    for i, _ in enumerate(threads.in_order(partial(begun.append, i) for i in range(50))):
        assert len(begun) <= i + 3


def test_a_product_takes_one_thread_of_the_blas():
    """The threads of a BLAS would spin after it, beside those that share the next work."""
    libraries = ThreadpoolController().select(user_api="blas").lib_controllers
    for library in libraries:
        library.set_num_threads(2)
    threads.use_one_for_blas.cache_clear()
    EngineWeight(PlainWeight(numbers(8, 8))).product(numbers(1, 8))
    assert {library.num_threads for library in libraries} == {1}


@pytest.mark.parametrize("M, N", [(600, 100), (100, 600), (700, 650), (1, 1 << 16)])
def test_a_product_is_whole_for_any_number_of_threads(monkeypatch, M, N):
    x, w = numbers(M, 300), numbers(300, N, seed=1)
    magnitude = np.abs(x).astype(np.float64) @ np.abs(w)
    for limit in (1, 2, 3, 40):
        monkeypatch.setattr(threads._state, "limit", limit)
        y = EngineWeight(PlainWeight(w)).product(x)
        assert_bounded(y, x.astype(np.float64) @ w, 300 * 2.0**-24 * magnitude)


def test_every_piece_is_worked_on_and_errors_arrive(monkeypatch):
    monkeypatch.setattr(threads._state, "limit", 2)
    seen = []
    threads.each(seen.append, range(50))
    assert sorted(seen) == list(range(50))
    for wrong in range(4):
        with pytest.raises(ZeroDivisionError):
            threads.each(lambda piece, wrong=wrong: 1 // (piece - wrong), range(4))


def test_the_caller_waits_for_those_who_help(monkeypatch):
    monkeypatch.setattr(threads._state, "limit", 2)
    done = []

    def work(piece):
        time.sleep(0.02 + 0.1 * (threading.current_thread() is not threading.main_thread()))
        done.append(piece)

    threads.each(work, range(4))
    assert sorted(done) == [0, 1, 2, 3]


def test_work_may_be_shared_within_shared_work(monkeypatch):
    monkeypatch.setattr(threads._state, "limit", 3)
    seen = []
    threads.each(lambda outer: threads.each(lambda inner: seen.append((outer, inner)), range(5)), range(7))
    assert sorted(seen) == [(outer, inner) for outer in range(7) for inner in range(5)]


def test_a_share_of_the_work_is_one_thread_s_alone(monkeypatch):
    monkeypatch.setattr(threads._state, "limit", 3)
    limits = []

    def work(piece):
        limits.append(threads.limit())
        if piece == 5:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        threads.each(work, range(6))
    assert set(limits) == {1}
    assert threads.limit() == 3


def test_who_computes_is_chosen_by_the_environment(monkeypatch):
    monkeypatch.delenv("CUTPQ_HOST", raising=False)
    monkeypatch.delenv("CUTPQ_HOST_KERNELS", raising=False)
    assert uses_engine(np)
    assert not uses_engine(sys)
    monkeypatch.setenv("CUTPQ_HOST", "formulas")
    assert not uses_engine(np)
    monkeypatch.setenv("CUTPQ_HOST", "kernel")
    with pytest.raises(ValueError, match="CUTPQ_HOST='kernel' is not one of engine, formulas"):
        uses_engine(np)
    monkeypatch.delenv("CUTPQ_HOST")
    monkeypatch.setenv("CUTPQ_HOST_KERNELS", "1")
    assert not uses_engine(np)


# ---- dequantize, and conversions


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(
    "factor", [1, 1.0001, 1e-4, 3e5, -1], ids=["usual", "float32 scales", "subnormals", "overflow", "negative"]
)
@pytest.mark.parametrize("is_sorted", [False, True])
def test_dequantize_has_the_bits_of_the_formula(dtype, bits, factor, is_sorted):
    w = random_weight(320, 136, 32, bits=bits)
    w = sort_groups(w)[0] if is_sorted else w
    scales = w.scales.astype(np.float32) * np.float32(factor)
    w = replace(w, scales=scales if factor == 1.0001 else scales.astype(np.float16))
    with np.errstate(over="ignore"):
        exact = formulas.dequant(w.codes, w.scales, w.zeros, w.g_idx, dtype)
    positive_zero = exact + np.zeros(1, dtype)  # the sign of a zero weight is not kept
    assert_exact(dequantize(w, dtype) + np.zeros(1, dtype), positive_zero)


def test_eleven_bits_are_rounded_to_nearest_even_for_all_mantissas():
    ones = np.float32(1).view(np.int32)
    for first in range(0, 1 << 23, 1 << 21):
        bits = np.arange(first, first + (1 << 21), dtype=np.int32) + ones
        odd = bits >> 13 & 1
        want = ((bits + 0xFFF + odd) & -0x2000).view(np.float32)
        for sign in np.float32(1), np.float32(-1):
            v = sign * bits.view(np.float32)
            assert_exact(keep_11_bits(v, np.empty_like(v)), sign * want)


def test_every_float16_number_survives_the_way_to_float32_and_back():
    bits = np.arange(1 << 16, dtype=np.uint16)
    x = bits.view(np.float16)
    number = ~np.isnan(x)
    assert_exact(to_float32(x)[number], x.astype(np.float32)[number])
    assert np.isnan(to_float32(x)[~number]).all()
    assert_exact(round_to(to_float32(x), np.float16)[number], x[number])


def test_float32_is_rounded_as_numpy_rounds_it():
    grid = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    ties = ((grid[1:] + grid[:-1]) / 2).astype(np.float32)
    near = [np.nextafter(ties, np.float32(end)) for end in (0, np.inf)]
    ends = np.float32([65519.99, 65520, 65536, 1e30, np.inf, np.nan, 0])
    v = np.concatenate([ties, *near, ends, numbers(1 << 17) * np.float32(3e-5)])
    v = np.random.default_rng(1).permutation(np.concatenate([v, -v]))
    with np.errstate(over="ignore"):
        want = v.astype(np.float16)
    number = ~np.isnan(v)
    assert_exact(round_to(v, np.float16)[number], want[number])
    assert np.isnan(round_to(v, np.float16)[~number]).all()
    usual = (np.abs(v) > 2e-4) & (np.abs(v) < 60000)  # where many are not, NumPy rounds them all
    assert_exact(round_to(v[usual], np.float16), want[usual])


def test_zeros_among_rounded_numbers_keep_their_sign():
    v = numbers(1 << 17)
    v[::3], v[1::3] = 0.0, -0.0
    assert_exact(round_to(v, np.float16).view(np.uint16), v.astype(np.float16).view(np.uint16))


# ---- between the products


@pytest.fixture(params=["at once", "by two rows", "by rows"])
def pieces_of_rows(request, monkeypatch):
    """As much as a thread works through at a time: all of it, or rows of 264; a row may be too long."""
    monkeypatch.setattr(elementwise, "_PIECE", {"at once": 1 << 16, "by two rows": 528, "by rows": 100}[request.param])
    monkeypatch.setattr(threads._state, "limit", 3)


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("center", [False, True])
def test_norms(dtype, center, pieces_of_rows):
    x, weight, bias = numbers(9, 264, dtype=dtype) * dtype.type(3), *(numbers(264, seed=i, dtype=dtype) for i in (1, 2))
    perm = np.random.default_rng(3).permutation(264).astype(np.int32)
    x64, weight64, bias64 = (a.astype(np.float64) for a in (x, weight, bias))
    v = x64 - x64.mean(axis=1, keepdims=True) * center
    exact = v / np.sqrt((v * v).mean(axis=1, keepdims=True) + 1e-5) * weight64 + bias64 * center
    bound = EPS[dtype] * np.abs(exact) + 2.0**-20 * (np.abs(weight64) * 3 + np.abs(bias64))
    y = residual_norm(None, x.copy(), weight, perm, bias=bias if center else None)
    assert_bounded(y, exact[:, perm], bound[:, perm])
    before, term = round_to(numbers(9, 264, seed=4), dtype), round_to(numbers(9, 264, seed=5), dtype)
    residual = before.copy()
    found = residual_norm(term, residual, weight, perm, bias=bias if center else None)
    assert_exact(residual, round_to(to_float32(before) + to_float32(term), dtype))
    assert_exact(found, residual_norm(None, residual, weight, perm, bias=bias if center else None))
    if not center:
        assert_exact(rmsnorm_gather(x, weight, perm), y)
    assert_exact(gather_columns(x, perm), x[:, perm])


@pytest.mark.parametrize("kind", formulas.ACTIVATIONS)
@pytest.mark.parametrize("gated", [False, True])
def test_activations_follow_the_formula(kind, gated):
    x = np.concatenate([numbers(5, 64) * 4, np.float32([[-200, -90, -10, 0, 10, 90, 200, 1e-30] * 8])])
    pairs = x.reshape(len(x), -1, 2, 8)
    want = formulas.activate(kind, pairs[:, :, 0], pairs[:, :, 1]) if gated else formulas.activate(kind, x)
    size = np.abs(pairs[:, :, 0] * pairs[:, :, 1]) if gated else np.abs(x)
    assert_bounded(activate(kind, x, gated=gated), want.reshape(len(x), -1), 2.0**-20 * size.reshape(len(x), -1))


CASES = {
    "prefill": (1, 150, 0, None),
    "prefill_after_tokens": (2, 40, 30, None),
    "decode": (3, 1, 77, None),
    "window": (2, 90, 10, 16),
    "window_decode": (2, 1, 50, 7),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("scores", [1 << 18, 1 << 10], ids=["at once", "in pieces"])
@pytest.mark.parametrize("D, has_kernels", [(16, False), (16, True), (32, True)])
def test_attention_follows_the_formula(name, scores, D, has_kernels, monkeypatch):
    """With kernels for small matrices decode takes q @ keys^T for 32 features, and keys @ q^T for 16."""
    monkeypatch.setattr(few_rows, "has_kernels", lambda: has_kernels)
    monkeypatch.setattr("cutpq.ops.engine.attention._SCORES", scores)
    monkeypatch.setattr("cutpq.ops.engine.attention._QUERIES", 8)
    monkeypatch.setattr("cutpq.ops.engine.attention._KEYS", scores)
    monkeypatch.setattr(threads._state, "limit", 2)
    B, T, before, window = CASES[name]
    H, KV, S = 6, 3, T + before
    q, k, v = numbers(B, T, H, D), numbers(B, KV, S, D, seed=1), numbers(B, KV, S, D, seed=2)
    positions = np.arange(before, S)[None, :] - np.arange(B)[:, None] * (before > B)
    found = attention(q, k, v, positions, 0.3, window)
    want = model_formulas.attention(q, k, v, positions, np.arange(H) * KV // H, 0.3, window)
    assert_bounded(found, want, np.full(want.shape, 2.0**-18))


@pytest.mark.parametrize("scores", [1 << 19, 1], ids=["at once", "one by one"])
def test_queries_that_do_not_exist_leave_the_others_alone(scores, monkeypatch):
    monkeypatch.setattr("cutpq.ops.engine.attention._SCORES", scores)
    monkeypatch.setattr("cutpq.ops.engine.attention._QUERIES", 1)
    q, k, v = numbers(2, 3, 2, 8), numbers(2, 2, 5, 8, seed=1), numbers(2, 2, 5, 8, seed=2)
    positions = np.array([[2, 3, 4], [0, 1, -1]])
    found = attention(q, k, v, positions, 1.0)
    want = model_formulas.attention(q, k, v, positions, np.arange(2), 1.0)
    assert np.isfinite(found).all()
    assert_bounded(found[positions >= 0], want[positions >= 0], np.full(want[positions >= 0].shape, 2.0**-18))


def test_rotation():
    x, angle = numbers(7, 3, 16), numbers(7, 8, seed=1)
    cos, sin = np.cos(angle), np.sin(angle)
    want = model_formulas.rotate(x, cos, sin)
    assert_bounded(rotate(x, *spread(cos, sin, 3)), want, 2.0**-22 * (1 + np.abs(want)))
