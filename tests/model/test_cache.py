"""Where the new tokens of a batch go, and in which dtype."""

import ml_dtypes
import numpy as np
import pytest
from assertions import assert_exact

from cutpq.model.attention import attention
from cutpq.model.cache import Batch, Cache
from cutpq.model.formulas import Angles


def test_places_of_a_batch_and_of_what_it_lacks() -> None:
    cache = Cache(3, 12, [1], 16, np.dtype(np.float16), np)
    cache.lengths[:] = 4, 0, 9
    batch = Batch.of([[1, 1], [1], [1, 1, 1]], cache, 2, np)
    assert batch.positions.tolist() == batch.query_positions.tolist() == [[4, 5, -1], [0, -1, -1], [9, 10, 11]]
    assert batch.places.tolist() == [0, 1, 3, 6, 7, 8]
    assert batch.query_positions.dtype == batch.places.dtype == np.int32
    assert Batch.of([[1], [1], [1]], cache, 2, np).places is None


DTYPES = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)]


@pytest.fixture
def call(monkeypatch):
    """call(dtype, held, host): what attention gives for some tokens of two sequences, and what the cache then has."""

    def run(dtype, held, host="engine"):
        monkeypatch.setenv("CUTPQ_HOST", host)
        rng = np.random.default_rng(3)
        cache = Cache(2, 24, [2], 16, held, np)
        cache.lengths[:] = 5, 9
        layer = cache.layers[0]
        for array in layer.keys, layer.values:
            array[:, :, :9] = rng.standard_normal((2, 2, 9, 16)).astype(dtype)
        batch = Batch.of([[0] * 4, [0] * 7], cache, 1, np)
        qkv, angle = rng.standard_normal((11, 8 * 16)).astype(dtype), rng.uniform(-3, 3, (11, 8))
        angles = Angles(np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32))
        return attention(qkv, angles, layer, batch, np.arange(4) // 2, 0.25), layer

    return run


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_float32_cache_holds_the_numbers_of_any_dtype(dtype, call):
    y, layer = call(dtype, np.dtype(np.float32))
    want, of_dtype = call(dtype, dtype)
    assert y.dtype == dtype
    assert_exact(y, want)
    for found, rounded in (layer.keys, of_dtype.keys), (layer.values, of_dtype.values):
        assert found.dtype == np.float32
        assert found.any(axis=(0, 1, 3)).sum() == 16
        assert_exact(found, rounded.astype(np.float32))


@pytest.mark.parametrize(
    "dtype, held, host", [(2, 0, "engine"), (1, 0, "engine"), (0, 2, "formulas")], ids=["f32", "bf16", "formulas"]
)
def test_a_cache_of_another_dtype_is_refused(dtype, held, host, call):
    with pytest.raises(TypeError, match=f"qkv must be {DTYPES[held]}, got {DTYPES[dtype]}"):
        call(DTYPES[dtype], DTYPES[held], host)
