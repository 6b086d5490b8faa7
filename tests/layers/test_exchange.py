"""How features come to the rows that need them: which of them, and that a GPU's product finds them ready to read."""

import numpy as np
import pytest
from assertions import assert_exact

from cutpq.array import array_module, to_numpy
from cutpq.layers.exchange import AllGather, AllToAll
from cutpq.ranks.threads import run_threads

X = np.random.default_rng(3).standard_normal((5, 12)).astype(np.float16)
BOUNDS = np.array([0, 3, 3, 12])  # one rank has no feature
NEEDS = [np.array([11, 0, 5, 6, 7]), np.array([1, 2]), np.array([10, 3, 4, 8, 9])]


@pytest.mark.parametrize("M", [1, 5])
@pytest.mark.parametrize("exchange", [AllGather, AllToAll])
def test_a_rank_gets_the_features_of_its_rows(exchange, M, xp) -> None:
    def rank(comm):
        mine = slice(*BOUNDS[comm.rank : comm.rank + 2])
        y = exchange(comm, BOUNDS, NEEDS)(comm.xp.asarray(X[:M, mine]))
        assert array_module(y) is np or y.flags.c_contiguous, "the product would copy it"
        return to_numpy(y)

    for y, need in zip(run_threads(3, rank, xp=xp), NEEDS, strict=True):
        assert_exact(np.ascontiguousarray(y), np.ascontiguousarray(X[:M, need]))
