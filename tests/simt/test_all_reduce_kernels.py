"""all_reduce_oneshot and all_reduce_twoshot over 2, 4 and 8 simulated devices: the sum, its order, and no race.

Each device runs a few sums one after the other, of different sizes and in any order with the other devices', so that
fast ranks overtake slow ones as far as the kernels let them. On a GPU the devices are streams of it.
"""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from assertions import assert_exact
from harness.gpu_clock import gpu_module

from cutpq.array import to_numpy
from cutpq.codecs.codec import codec
from cutpq.kernels import executor, source
from cutpq.kernels import load as kernels
from cutpq.kernels.config import payload_code
from cutpq.kernels.executor import ExecutorError
from cutpq.ranks.all_reduce import all_reduce
from cutpq.ranks.slab import MEETINGS, peer_config
from cutpq.ranks.threads import run_threads

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FOREVER_US = 2**32 - 1
PATIENCE_US = 5_000_000  # of kernels on a GPU, where nobody finds a livelock


def small_config(name, dtype, ranks, step=0):
    """The constants of a codec, or None; with so few threads and blocks that every loop has several rounds."""
    c = codec(name) if name else None
    facts = (c.element, c.block, c.scale, c.rule) if c else None
    config = peer_config(facts, payload_code(dtype), ranks, step)
    threads = 64 if config.PACKED else 32  # a warp for each of two teams
    return replace(config, THREADS=threads, GRID=4)


class Devices:
    """Slabs of simulated devices, and the sums that are still to be launched on each."""

    BRIEFLY_US = 20_000  # a device of the executor counts a microsecond at each look at its clock

    def __init__(self, ranks, half_bytes=1 << 14):
        self.ranks, self.half_bytes = ranks, half_bytes
        self.slabs = [np.zeros(4096 + 2 * half_bytes, np.uint8) for _ in range(ranks)]
        self.status = [np.zeros(1, np.uint32) for _ in range(ranks)]
        self.streams = [[] for _ in range(ranks)]

    def all_reduce(self, algo, name, terms, step=0, timeout_us=FOREVER_US, who=None):
        outs = [np.full(term.shape, np.nan, term.dtype) for term in terms]
        config = small_config(name, terms[0].dtype, self.ranks, step)
        kernel = f"all_reduce_{algo}"
        unit = source.translation_unit(kernel, config)
        built = executor.build(kernel, unit, source.source_dir())
        for rank in range(self.ranks) if who is None else who:
            arguments = (
                self.slabs,
                terms[rank],
                outs[rank],
                self.status[rank],
                np.int32(rank),
                np.int32(terms[rank].size),
                np.uint32(self.half_bytes),
                np.uint32(timeout_us),
            )
            call = built, (config.GRID,), (config.THREADS,), arguments, config.smem_bytes
            self.streams[rank].append(call)
        return outs

    def run(self):
        streams, self.streams = self.streams, [[] for _ in range(self.ranks)]
        executor.launch([stream for stream in streams if stream])


class Streams:
    """As Devices, of one GPU: a slab and a stream for each rank; all their blocks together are resident at once."""

    BRIEFLY_US = 500_000  # all ranks' kernels have been launched by then

    def __init__(self, ranks, half_bytes=1 << 14):
        self.xp, self.half_bytes, self.kept = gpu_module(), half_bytes, []
        self.slabs = [self.xp.zeros(4096 + 2 * half_bytes, np.uint8) for _ in range(ranks)]
        self.addresses = self.xp.array([slab.data.ptr for slab in self.slabs], np.uint64)
        self.status = [self.xp.zeros(1, np.uint32) for _ in range(ranks)]
        self.xp.cuda.get_current_stream().synchronize()
        self.streams = [self.xp.cuda.Stream(non_blocking=True) for _ in range(ranks)]

    def all_reduce(self, algo, name, terms, step=0, timeout_us=PATIENCE_US, who=None):
        config = small_config(name, terms[0].dtype, len(self.slabs), step)
        kernel = kernels.load(f"all_reduce_{algo}", config, self.xp)
        terms = [self.xp.asarray(term) for term in terms]
        outs = [self.xp.full(term.shape, np.nan, term.dtype) for term in terms]
        self.xp.cuda.get_current_stream().synchronize()
        for rank in range(len(self.slabs)) if who is None else who:
            with self.streams[rank]:
                kernel(
                    (config.GRID,), config.THREADS, self.addresses, terms[rank], outs[rank], self.status[rank], rank,
                    terms[rank].size, self.half_bytes, timeout_us, smem_bytes=config.smem_bytes,
                )  # fmt: skip
        self.kept.append(terms)  # until the kernels have read them
        return outs

    def run(self):
        for stream in self.streams:
            stream.synchronize()


@pytest.fixture(params=["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def devices(request):
    """What makes so many devices."""
    return Devices if request.param == "cpu" else Streams


def numbers(ranks, n, dtype, seed=0):
    rng = np.random.default_rng([seed, n])
    return [(rng.standard_t(2, n) * 4).astype(dtype) for _ in range(ranks)]


def formula(terms, name, algo):
    """By ranks as threads, without kernels; a plain sum is added in rank order and rounded once."""
    if name is None:
        return sum((t.astype(np.float32) for t in terms[1:]), terms[0].astype(np.float32)).astype(terms[0].dtype)
    on_rank = lambda comm: all_reduce(terms[comm.rank], comm, codec=name, algo=algo)  # noqa: E731
    return run_threads(len(terms), on_rank)[0]


def bits(a):
    return a.view(f"u{a.itemsize}")


def assert_sums(outs, terms, name, algo):
    want = formula(terms, name, algo)
    for out in outs:
        assert_exact(bits(to_numpy(out)), bits(want))


ALGOS = ["oneshot", "twoshot"]
PAYLOADS = {
    "plain": (None, np.dtype(np.float16)),
    "plain_float32": (None, np.dtype(np.float32)),
    "mxfp4": ("mxfp4", np.dtype(np.float16)),
    "odd_widths": ("e2m2-b8-e5m0-rceil", BFLOAT16),
}


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("algo", ALGOS)
@pytest.mark.parametrize("ranks", [2, 4])
def test_sums_of_several_sizes_in_a_row(settings, ranks, algo, payload):
    name, dtype = PAYLOADS[payload]
    for settings.seed in (0, 1, 2, 3):
        devices = Devices(ranks)
        calls = [numbers(ranks, n, dtype, seed) for seed, n in enumerate((600, 2500, 33, 700))]
        outs = [devices.all_reduce(algo, name, terms) for terms in calls]
        devices.run()
        for terms, sums in zip(calls, outs, strict=True):
            assert_sums(sums, terms, name, algo)


@pytest.mark.parametrize("name", [None, "mxfp4"])
@pytest.mark.parametrize("algo", ALGOS)
def test_shares_of_many_tiles(devices, monkeypatch, algo, name):
    """Several rounds of several tiles each, all whole, and a ragged one; 2 divides the number of blocks, 3 does not."""
    # Check mode would report the compiler: it loads the words of three ranks in one load of 16 bytes, of which four lie
    # behind them.
    monkeypatch.setattr(executor, "default_mode", "fast")
    for ranks in (2, 3) if algo == "twoshot" else (2,):
        some = devices(ranks, half_bytes=1 << 16)
        terms = numbers(ranks, 13_000 if algo == "twoshot" else 7_999, np.float16)
        sums = some.all_reduce(algo, name, terms)
        some.run()
        assert_sums(sums, terms, name, algo)


@pytest.mark.parametrize("name", [None, "mxfp4"])
@pytest.mark.parametrize("algo", ALGOS)
def test_eight_devices(devices, settings, algo, name):
    settings.seed = 5
    eight = devices(8)
    calls = [numbers(8, n, np.float16) for n in (1000, 70)]
    outs = [eight.all_reduce(algo, name, terms) for terms in calls]
    eight.run()
    for terms, sums in zip(calls, outs, strict=True):
        assert_sums(sums, terms, name, algo)


def test_both_algorithms_share_a_slab(settings):
    for settings.seed in range(4, 10):
        devices = Devices(2)
        calls = [(algo, numbers(2, n, np.float16)) for n in (2000, 100) for algo in ("oneshot", "twoshot", "oneshot")]
        outs = [devices.all_reduce(algo, "mxfp4", terms) for algo, terms in calls]
        devices.run()
        for (algo, terms), sums in zip(calls, outs, strict=True):
            assert_sums(sums, terms, "mxfp4", algo)


@pytest.mark.parametrize("n", [1, 31, 33, 1024, 1025])
@pytest.mark.parametrize("algo", ALGOS)
def test_any_number_of_elements(devices, algo, n):
    for name in None, "mxfp4":
        four = devices(4)
        terms = numbers(4, n, np.float16)
        outs = four.all_reduce(algo, name, terms)
        four.run()
        assert_sums(outs, terms, name, algo)


@pytest.mark.parametrize(("algo", "steps"), [("oneshot", 2), ("twoshot", 3)])
def test_steps_with_the_host_between_them(devices, algo, steps):
    four = devices(4)
    for n in 900, 100, 900:
        terms = numbers(4, n, np.float16, n)
        for step in range(1, steps + 1):
            outs = four.all_reduce(algo, "mxfp4", terms, step)
            four.run()
        assert_sums(outs, terms, "mxfp4", algo)


@pytest.mark.parametrize("algo", ALGOS)
def test_sums_of_any_number_of_epochs(algo):
    """Epochs pass 2^32 and go on."""
    devices = Devices(2)
    words = [slab.view(np.uint32) for slab in devices.slabs]
    config = small_config("mxfp4", np.float16, 2)
    last = MEETINGS * config.GRID * 2
    for slab in words:
        slab[: last + 2 * config.GRID] = 2**32 - 2
    calls = [numbers(2, 100, np.float16, seed) for seed in range(4)]
    outs = [devices.all_reduce(algo, "mxfp4", terms) for terms in calls]
    devices.run()
    for terms, sums in zip(calls, outs, strict=True):
        assert_sums(sums, terms, "mxfp4", algo)
    assert all((slab[last : last + config.GRID] == 2).all() for slab in words)


@pytest.mark.parametrize("algo", ALGOS)
@pytest.mark.parametrize("absent", [0, 2])
def test_peer_that_never_comes_is_named(devices, algo, absent):
    four = devices(4)
    present = [rank for rank in range(4) if rank != absent]
    outs = four.all_reduce(algo, "mxfp4", numbers(4, 500, np.float16), timeout_us=four.BRIEFLY_US, who=present)
    four.run()
    assert [int(four.status[rank][0]) for rank in present] == [1 + absent] * 3
    assert all(np.isnan(to_numpy(outs[rank])).all() for rank in present), "a sum without a peer was written"


def test_without_a_timeout_the_absence_is_a_hang():
    devices = Devices(2)
    devices.all_reduce("oneshot", "mxfp4", numbers(2, 40, np.float16), who=[1])
    with pytest.raises(ExecutorError, match="livelock"):
        devices.run()
