"""gemm_w4a16 launched by programmatic dependent launch: a chain of kernels under the race detector, and its bits."""

from contextlib import contextmanager

import numpy as np
import pytest
from assertions import assert_exact
from random_weight import random_weight

from cutpq.kernels import executor
from cutpq.kernels import load as kernels
from cutpq.kernels.config import FLOAT16, Device
from cutpq.model.decode_attention import config_for
from cutpq.ops import gemm, gemm_config
from cutpq.ops.gather import GatherConfig, RmsnormConfig
from cutpq.ops.gemm import matmul
from cutpq.ops.residual_norm import ResidualNormConfig, residual_norm
from cutpq.weights.pack import pack

WAIT, START = b"griddepcontrol.wait", b"griddepcontrol.launch_dependents"


@pytest.fixture(autouse=True)
def _host_kernels(monkeypatch):
    monkeypatch.setenv("CUTPQ_HOST_KERNELS", "1")


@pytest.fixture
def pdl(monkeypatch):
    """Switch it on or off; K is cut in two, so that sums of blocks pass through the workspace."""

    def switch(on):
        monkeypatch.setenv("CUTPQ_PDL", "1" if on else "0")
        monkeypatch.setattr(gemm_config, "_cuts", lambda config, problem, device: 2)
        gemm_config.select_gemm.cache_clear()

    yield switch
    gemm_config.select_gemm.cache_clear()


@contextmanager
def one_stream():
    """Launches on NumPy arrays are kept, and at the end run one after the other as those of one stream."""
    calls = []

    def keep(self, grid, block, args, shared_mem=0):
        calls.append((self, grid, block, args, shared_mem))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executor.Kernel, "__call__", keep)
        room = np.full(1 << 16, np.nan, np.float32), np.zeros(64, np.uint32)
        patch.setattr(gemm, "workspace", lambda xp, floats, counters: (room[0][:floats], room[1][:counters]))
        yield
    executor.launch([calls])


def norm_and_two_products(w1, w2):
    """residual_norm, then two products whose partial sums take turns in one workspace; what the last one wrote."""
    rng = np.random.default_rng(5)
    total, residual, weight = (rng.standard_normal(shape).astype(np.float16) for shape in ((3, 640), (3, 640), 640))
    with one_stream():
        x = residual_norm(total, residual, weight, rng.permutation(640).astype(np.int32), 1e-5)
        return matmul(matmul(x, pack(w1)), pack(w2))


@pytest.mark.parametrize("order", ["groups in order", "act-order"])
def test_chain_has_the_bits_of_launches_in_order_and_no_race(pdl, order):
    rows = dict(g_idx=np.arange(640) // 64) if order == "groups in order" else {}
    w1, w2 = random_weight(640, 640, 64, bias=True, **rows), random_weight(640, 72, 64, seed=1, **rows)
    pdl(on=False)
    in_order = norm_and_two_products(w1, w2)
    assert np.isfinite(in_order).all()
    pdl(on=True)
    assert_exact(norm_and_two_products(w1, w2), in_order)


PROBLEM = gemm_config.GemmProblem(8, 4096, 4096, FLOAT16, "uniform", 128, 8)


def gemm_ptx(arch=90):
    config, _ = gemm_config.select_gemm(PROBLEM, Device(arch, 132))
    return kernels.load("gemm_w4a16", config, np).function.ptx


def test_weights_are_on_their_way_before_the_wait(pdl):
    pdl(on=True)
    ptx = gemm_ptx()
    assert ptx.count(WAIT) == 1
    assert ptx.index(b"cp.async.cg.shared.global.L2::cache_hint") < ptx.index(WAIT) < ptx.index(START)


def test_off_unless_asked_for(pdl, monkeypatch):
    pdl(on=False)
    assert WAIT not in gemm_ptx()
    monkeypatch.delenv("CUTPQ_PDL")
    gemm_config.select_gemm.cache_clear()
    assert not gemm_config.select_gemm(PROBLEM, Device(90, 132))[0].starts_early
    monkeypatch.setenv("CUTPQ_PDL", "yes")
    gemm_config.select_gemm.cache_clear()
    with pytest.raises(ValueError, match="CUTPQ_PDL must be 0 or 1, got 'yes'"):
        gemm_config.select_gemm(PROBLEM, Device(90, 132))


def test_never_below_sm_90(pdl):
    pdl(on=True)
    assert gemm_config.select_gemm(PROBLEM, Device(90, 132))[0].starts_early
    assert not gemm_config.select_gemm(PROBLEM, Device(89, 132))[0].starts_early


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("residual_norm", ResidualNormConfig(FLOAT16, False)),
        ("rmsnorm_gather", RmsnormConfig(FLOAT16)),
        ("gather_columns", GatherConfig()),
        ("decode_attention", config_for(np.float16, 64, 8)),
    ],
)
def test_kernels_before_a_product_let_it_start(name, config):
    ptx = kernels.load(name, config, np).function.ptx
    assert ptx.count(START) == 1
    assert ptx.index(START) < ptx.index(b"ld.global"), "before it reads anything"
