"""Where the new tokens of a batch go."""

import numpy as np

from cutpq.model.cache import Batch, Cache


def test_places_of_a_batch_and_of_what_it_lacks() -> None:
    cache = Cache(3, 12, [1], 16, np.dtype(np.float16), np)
    cache.lengths[:] = 4, 0, 9
    batch = Batch.of([[1, 1], [1], [1, 1, 1]], cache, 2, np)
    assert batch.positions.tolist() == batch.query_positions.tolist() == [[4, 5, -1], [0, -1, -1], [9, 10, 11]]
    assert batch.places.tolist() == [0, 1, 3, 6, 7, 8]
    assert batch.query_positions.dtype == batch.places.dtype == np.int32
    assert Batch.of([[1], [1], [1]], cache, 2, np).places is None
