"""Codecs with options have no kernel: their formulas take CuPy arrays, on a stand-in that refuses NumPy's."""

import numpy as np
import pytest
import strict_cupy
from assertions import assert_exact

from cutpq.array import array_module
from cutpq.codecs.codec import codec
from cutpq.ranks.all_reduce import all_reduce
from cutpq.ranks.threads import run_threads

NAMES = ["mxfp4", "mxfp6-e3m2", "mxint8", "nvfp4", "e2m2-b128-e5m0-rceil", "int4-b8-float16", "e3m1-b16-e4m0-even"]
OUTLIERS = np.arange(96) % 17 == 3


def numbers(n, seed=0):
    x = np.random.default_rng(seed).standard_t(2, n).astype(np.float16)
    x[5] = np.inf
    return x


@pytest.fixture
def cupy(monkeypatch):
    return strict_cupy.install(monkeypatch)


@pytest.mark.parametrize("options", [{"rotate": True}, {"outliers": OUTLIERS}, {"rotate": True, "outliers": OUTLIERS}])
@pytest.mark.parametrize("name", NAMES)
def test_wires_and_numbers_are_those_of_numpy(cupy, name, options):
    c, x = codec(name, **options), numbers(96 * 41)
    wire = c.encode(cupy.asarray(x))
    assert array_module(wire) is cupy
    assert_exact(wire.get(), c.encode(x))
    back = c.decode(wire)
    assert array_module(back) is cupy
    assert_exact(back.get(), c.decode(c.encode(x)))
    bound = c.bound(cupy.asarray(x))
    assert array_module(bound) is cupy
    assert_exact(bound.get(), c.bound(x))


@pytest.mark.parametrize("algo", ["oneshot", "twoshot"])
@pytest.mark.parametrize("options", [{"rotate": True}, {"outliers": OUTLIERS}])
def test_sums_are_those_of_numpy(cupy, algo, options, monkeypatch):
    monkeypatch.setattr("cutpq.ranks.threads._wait_for_gpu", lambda xp: None)
    c = codec("mxfp4", **options)

    def on_rank(comm, to_device):
        return all_reduce(to_device(numbers(96 * 4, comm.rank)), comm, c, algo)

    want = run_threads(3, on_rank, np.asarray)
    for have, expected in zip(run_threads(3, on_rank, cupy.asarray), want, strict=True):
        assert array_module(have) is cupy
        assert_exact(have.get(), expected)


def test_the_stand_in_refuses_numpys_arrays(cupy):
    mine, theirs = cupy.asarray(np.ones(4)), np.ones(4)
    for mixed in (
        lambda: mine + theirs,
        lambda: theirs + mine,
        lambda: cupy.maximum(mine, theirs),
        lambda: cupy.concatenate([mine, theirs]),
        lambda: mine[theirs.astype(int)],
        lambda: mine.take(theirs.astype(int)),
        lambda: mine.__setitem__(slice(4), theirs),
        lambda: mine.__iadd__(theirs),
        lambda: np.add(mine, 1, out=theirs),
    ):
        with pytest.raises(TypeError, match="NumPy's array of shape"):
            mixed()
    assert array_module(mine + np.float32(1)) is cupy
