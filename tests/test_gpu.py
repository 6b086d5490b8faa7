"""What only a GPU has: graphs, streams, many launches of one kernel, the library's sums, NCCL.

The other tests take CuPy arrays where they name xp; `pytest -m gpu` runs them all.
"""

import numpy as np
import pytest
from assertions import assert_exact
from harness.gpu_clock import gpu_module
from random_weight import random_weight

from cutpq.array import bfloat16, to_numpy
from cutpq.layers.mlp import Mlp
from cutpq.ops.gemm import matmul, prepare
from cutpq.ranks.all_reduce import all_reduce
from cutpq.ranks.nccl import DTYPES, NcclCommunicator
from cutpq.ranks.threads import run_threads
from cutpq.weights.pack import pack
from cutpq.weights.permutation import permute_columns

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def xp():
    return gpu_module()


def contiguous(K, size):
    return np.arange(K) // size


def tokens(M, K, dtype=np.float16, seed=9):
    return np.random.default_rng(seed).standard_normal((M, K)).astype(dtype)


# ---- graphs and streams


def test_a_graph_replays_the_product(xp):
    w = prepare(random_weight(1024, 64, 64, g_idx=contiguous(1024, 64)), xp)
    x, y = xp.asarray(tokens(2, 1024)), xp.empty((2, 64), np.float16)
    xp.cuda.get_current_stream().synchronize()
    with xp.cuda.Stream(non_blocking=True) as stream:
        want = to_numpy(matmul(x, w, out=y))
        stream.begin_capture()
        matmul(x, w, out=y)
        graph = stream.end_capture()
        for _ in range(3):
            y.fill(np.nan)
            graph.launch(stream)
            stream.synchronize()
            assert_exact(to_numpy(y), want)


def test_products_on_two_streams_do_not_share_their_partial_sums(xp):
    """One strip of 64 columns and thousands of rows: many blocks add up in one place."""
    w = prepare(random_weight(8192, 64, 64, g_idx=contiguous(8192, 64)), xp)
    xs = [xp.asarray(tokens(2, 8192, seed=seed)) for seed in (1, 2)]
    want = [to_numpy(matmul(x, w)) for x in xs]
    xp.cuda.get_current_stream().synchronize()
    streams = [xp.cuda.Stream(non_blocking=True) for _ in xs]
    ys = [[], []]
    for _ in range(20):
        for x, y, stream in zip(xs, ys, streams, strict=True):
            with stream:
                y.append(matmul(x, w))
    for stream in streams:
        stream.synchronize()
    for y, expected in zip(ys, want, strict=True):
        for each in y:
            assert_exact(to_numpy(each), expected)


@pytest.mark.parametrize("codec", [None, "mxfp4"])
def test_ranks_on_streams_of_their_own(xp, codec):
    gate, up, down = (
        random_weight(*shape, 32, seed=seed) for seed, shape in enumerate([(128, 96), (128, 96), (96, 64)])
    )
    x = xp.asarray(tokens(3, 128))

    def rank(comm):
        return to_numpy(Mlp.from_weights(gate, up, down, comm, "naive", codec=codec, algo="twoshot")(x))

    def rank_on_a_stream(comm):
        with xp.cuda.Stream(non_blocking=True):
            return rank(comm)

    want = run_threads(3, rank, xp=xp)
    for got, expected in zip(run_threads(3, rank_on_a_stream, xp=xp), want, strict=True):
        assert_exact(got, expected)


# ---- many launches


@pytest.mark.parametrize("M", [2, 40])
def test_columns_that_blocks_share_have_the_same_bits_every_time_and_place(xp, M):
    w = random_weight(8192, 64, 64, g_idx=contiguous(8192, 64)).to(xp)
    x, p = xp.asarray(tokens(M, w.K)), pack(w)
    first = to_numpy(matmul(x, p))
    for _ in range(20):
        assert_exact(to_numpy(matmul(x, p)), first)
    perm = np.random.default_rng(3).permutation(64)
    assert_exact(to_numpy(matmul(x, pack(permute_columns(w, xp.asarray(perm))))), first[:, perm])


# ---- NCCL


def test_one_rank_of_nccl(xp):
    """Types, counts and pointers reach the library; more ranks take more GPUs."""
    nccl = pytest.importorskip("cupy.cuda.nccl")
    if not hasattr(nccl, "NcclCommunicator"):
        pytest.skip("CuPy finds no NCCL")

    def rank(control):
        comm = NcclCommunicator(control, nccl, xp, xp.cuda.runtime.getDevice())
        for dtype in DTYPES:
            x = xp.arange(1, 8).astype(dtype)
            for y in comm.all_reduce(x), comm.all_gather(x)[0], comm.all_to_all(x[None])[0]:
                assert_exact(to_numpy(y), to_numpy(x))
        x = xp.asarray(tokens(3, 50, bfloat16))
        by_nccl, by_thread = (to_numpy(all_reduce(x, c, "mxfp4", "twoshot")) for c in (comm, control))
        assert_exact(by_nccl, by_thread)
        comm.barrier()

    run_threads(1, rank, xp=xp)
