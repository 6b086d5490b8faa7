"""The executor on a kernel that others wrote: Marlin, of float16 and 4-bit weights (Frantar et al., arXiv 2408.11743).

It is no part of this repository. Give the path of a copy of marlin/marlin_cuda_kernel.cu, github.com/IST-DASLab/marlin:

    CUTPQ_MARLIN=marlin_cuda_kernel.cu pytest tests/softgpu/test_marlin.py

Its blocks reuse shared memory at three places where no barrier stands between one warp's reads and another's writes: a
GPU's latencies keep them apart, the executor does not. With two barriers more the product is right in every schedule.
The third place is in the shapes with tiles of 64 rows and groups of 128.
"""

import os
import re
from pathlib import Path

import numpy as np
import pytest

from cutpq.kernels import executor, nvrtc

pytestmark = pytest.mark.skipif(
    "CUTPQ_MARLIN" not in os.environ, reason="CUTPQ_MARLIN names no copy of Marlin's kernel"
)

THREADS, SHARED_BYTES, GROUP = 256, 96 << 10, 128
# Tiles of 16: of M, N and K in a block; stages of the ring; tiles of K in a group of scales, -1 for one scale a column.
SHAPES = {
    "groups": (1, 8, 8, 4, 8),
    "groups, two token tiles": (2, 8, 8, 4, 8),
    "one scale": (1, 8, 8, 4, -1),
    "one scale, wide": (1, 16, 4, 4, -1),
}
WIDE_WITH_GROUPS = (1, 16, 4, 4, 8)
BARRIERS = {
    "thread_block_reduce();": "__syncthreads(); thread_block_reduce();",
    "write_result();": "write_result(); __syncthreads();",
}


@pytest.fixture(scope="module")
def device_code():
    """What of the file is for the device, without the includes and functions of the host."""
    text = Path(os.environ["CUTPQ_MARLIN"]).read_text()
    text = re.sub(r"#include <(cuda|cuda_runtime|iostream)(\.h)?>", "", text.partition("const int THREADS")[0])
    return f"using uint32_t = unsigned int;\n{text}\n#endif\n"


def marlin(device_code, shape, mode):
    numbers = ", ".join(map(str, (THREADS, *shape)))
    arguments = "const int4*, const int4*, int4*, const int4*, int, int, int, int*"
    source = f"{device_code}\ntemplate __global__ void Marlin<{numbers}>({arguments});\n"
    compiler = nvrtc.find()
    options = ["-arch=compute_80", "-std=c++17", "-lineinfo", "-default-device", f"-I{compiler.include}"]
    ptx = compiler.compile(source, "marlin.cu", options, result="PTX")[0].rstrip(b"\0")
    (name,) = re.findall(rb"\.entry (\w+)", ptx)
    return executor.Kernel(name.decode(), ptx, mode)


def fragment_order():
    """Where in a row of 1,024 packed codes, 16 rows by 64 columns, each comes from: as mma's fragments want them."""
    order = []
    for lane in range(32):
        rows = [2 * (lane % 4) + extra for extra in (0, 1, 8, 9)]
        of_tile = [16 * row + lane // 4 + 8 * half for half in (0, 1) for row in rows]
        order += [code + 256 * tile for tile in range(4) for code in of_tile]
    return np.array(order).reshape(-1, 8)[:, [0, 2, 4, 6, 1, 3, 5, 7]].ravel()


def pack(codes):
    """(K, N) codes as Marlin stores them: eight to a word, (K/16, 2 N) words."""
    K, N = codes.shape
    tiles = codes.reshape(K // 16, 16, N // 16, 16).transpose(0, 2, 1, 3).reshape(-1, 1024)
    eights = tiles[:, fragment_order()].reshape(K // 16, 2 * N, 8).astype(np.uint32)
    return (eights << np.arange(0, 32, 4, dtype=np.uint32)).sum(2, dtype=np.uint32)


def pack_scales(scales):
    """The order of 64 columns' scales that a thread's loads want; with one group another, of 32."""
    by_eights = np.arange(64).reshape(8, 8).T.ravel()
    by_pairs = np.concatenate([2 * i + np.array([0, 1, 8, 9, 16, 17, 24, 25]) for i in range(4)])
    order = by_eights if len(scales) > 1 else by_pairs
    return np.ascontiguousarray(scales.reshape(-1, len(order))[:, order].reshape(scales.shape))


def with_barriers(code):
    for old, new in BARRIERS.items():
        assert code.count(old) == 1
        code = code.replace(old, new)
    return code


def product(code, tiles, mode, blocks=3):
    """y, its exact value, and the bound of each error: weights, partial sums and results are rounded to float16."""
    M, K, N = 16 * tiles[0], 512, 512
    rng = np.random.default_rng(0)
    x = rng.standard_normal((M, K)).astype(np.float16)
    codes = rng.integers(0, 16, (K, N))
    scales = (rng.uniform(0.5, 1.5, (K // GROUP if tiles[4] > 0 else 1, N)) / K**0.5).astype(np.float16)
    y, locks = np.full((M, N), np.nan, np.float16), np.zeros(N // 128 * 16, np.int32)
    arguments = x, pack(codes), y, pack_scales(scales), np.int32(M), np.int32(N), np.int32(K), locks
    marlin(code, tiles, mode)((blocks,), (THREADS,), arguments, shared_mem=SHARED_BYTES)
    assert not locks.any()
    weight = np.repeat(scales.astype(np.float64), K // len(scales), 0) * (codes - 8)
    exact, size = x.astype(np.float64) @ weight, np.abs(x.astype(np.float64)) @ np.abs(weight)
    return y, exact, 2.0**-11 * (size + 4 * np.abs(exact)) + 2.0**-14


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_product_is_right_in_every_schedule(device_code, settings, shape, seed):
    settings.seed = seed
    y, exact, bound = product(with_barriers(device_code), SHAPES[shape], "fast")
    assert (np.abs(y - exact) <= bound).all()


def test_where_each_block_has_one_column_it_is_right_as_published(device_code):
    y, exact, bound = product(device_code, SHAPES["groups"], "fast", blocks=4)
    assert (np.abs(y - exact) <= bound).all()


@pytest.mark.parametrize("tiles", [SHAPES["groups"], WIDE_WITH_GROUPS], ids=["as published", "wide, with groups"])
def test_the_detector_names_the_missing_barriers(device_code, tiles):
    code = device_code if tiles == SHAPES["groups"] else with_barriers(device_code)
    with pytest.raises(executor.ExecutorError, match=r"write to shared memory .*race: not ordered after a read"):
        product(code, tiles, "check", blocks=2)
