"""The judge of bench/nodes.py: it accepts the library's sums, and none that lacks a rank, a node's term or a number."""

import nodes as bench
import numpy as np
import pytest
from truth.verifiable import term

from cutpq.codecs.codec import codec
from cutpq.cost.nodes import CABLES, Nodes, choose_shots
from cutpq.ranks.all_reduce import all_reduce
from cutpq.ranks.threads import run_threads

ALGOS = [(algo, name) for algo in ("twoshot", "hierarchical") for name in ("mxfp4", "mxfp8-e4m3")]
CASES = [("plain", None), ("hierarchical", None), *ALGOS]
SHOTS = {5000: "oneshot", 50000: "twoshot"}  # between three nodes, by count


@pytest.fixture
def over(monkeypatch):
    """over("0,0,1", count, algo, codec): the sum of ranks on these nodes, and the nodes."""

    def call(places, count, algo, name):
        monkeypatch.setenv("CUTPQ_NODES", places)
        monkeypatch.setenv("CUTPQ_BETWEEN", "tcp-1g")
        ranks = [int(node) for node in places.split(",")]
        return run_threads(len(ranks), summed, count, algo, name, timeout_s=60)[0], Nodes.of(ranks)

    return call


def numbers(rank, count):
    return term(bench.SEED, rank, 0, count, np.dtype(np.float16))


def summed(comm, count, algo, name):
    return all_reduce(numbers(comm.rank, count), comm, name, algo)


def judged(y, algo, name, nodes):
    c = name and codec(name)
    shots = choose_shots(y.size, nodes, c, CABLES["tcp-1g"]) if c and algo == "hierarchical" else ""
    return bench.error_of(y, algo, c, shots, nodes)


@pytest.mark.parametrize("places", ["0,0,1,1", "0,0,1,1,2,2", "0,1,1,2,2,2"])
@pytest.mark.parametrize("count", SHOTS)
@pytest.mark.parametrize(("algo", "name"), CASES)
def test_sums_are_right_and_damaged_ones_are_not(algo, name, count, places, over):
    y, nodes = over(places, count, algo, name)
    rel_err, right = judged(y, algo, name, nodes)
    assert right
    assert rel_err < {None: 1e-3, "mxfp8-e4m3": 0.08, "mxfp4": 0.25}[name]

    last = numbers(places.count(","), count)
    lacking, zeroed, unknown = y - last, y.copy(), y.copy()
    zeroed[64 : count // 20] = 0
    unknown[-1] = np.nan
    for damaged in (lacking, y + last, zeroed, unknown, np.roll(y, 1)):
        assert not judged(damaged, algo, name, nodes)[1]
    assert judged(lacking, algo, name, nodes)[0] > rel_err


def test_one_wrong_number_among_many_is_found(over):
    y, nodes = over("0,1,2", 1 << 20, "hierarchical", "mxfp4")
    assert judged(y, "hierarchical", "mxfp4", nodes)[1]
    y[1 << 19] += 4  # too little for the norm of all errors
    assert not judged(y, "hierarchical", "mxfp4", nodes)[1]


@pytest.mark.parametrize("count", SHOTS)
def test_a_sum_is_judged_by_who_encodes_what(count, over):
    """With their own terms encoded as well, or in one shot for two, the sum is another."""
    flat, nodes = over("0,1,2", count, "twoshot", "mxfp4")
    found, _ = over("0,1,2", count, "hierarchical", "mxfp4")
    c = codec("mxfp4")
    for shots in ("oneshot", "twoshot"):
        assert bench.error_of(found, "hierarchical", c, shots, nodes)[1] == (shots == SHOTS[count])
        assert not bench.error_of(flat, "hierarchical", c, shots, nodes)[1]
