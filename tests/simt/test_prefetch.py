"""prefetch_l2: which bytes of a weight it asks for, counted on the executor, and when it is launched."""

import numpy as np
import pytest
from assertions import assert_exact
from random_weight import random_weight

from cutpq.kernels import load as kernels
from cutpq.ops import prefetch as module
from cutpq.ops.gemm import prepare
from cutpq.ops.prefetch import prefetch


@pytest.fixture(autouse=True)
def _host_kernels(monkeypatch):
    monkeypatch.setenv("CUTPQ_HOST_KERNELS", "1")
    yield
    module.wanted_bytes.cache_clear()


@pytest.fixture
def asked(monkeypatch, settings, counts):
    """What is asked for of weights where CUTPQ_PREFETCH is so much: (kernels, requests, lines, lines they span)."""

    def ask(wanted, weights, arch=90):
        counts.clear()
        settings.arch = arch
        device = kernels.device
        with monkeypatch.context() as patch:
            patch.setenv("CUTPQ_PREFETCH", wanted)
            patch.setattr(kernels, "device", lambda xp: device(xp)._replace(arch=arch))
            module.wanted_bytes.cache_clear()
            prefetch(weights)
        found = [line["prefetches"] for line in counts]
        return len(found), *(sum(f[what] for f in found) for what in ("requests", "lines", "span"))

    return ask


def weight(K, N):
    return prepare(random_weight(K, N, 64, g_idx=np.arange(K) // 64), np)


@pytest.mark.parametrize(("arch", "requests"), [(90, 3 * 5), (80, 3 * 144)])
def test_whole_weight(asked, arch, requests):
    """Strips of 18 KiB, no multiple of what one request brings."""
    w = weight(576, 192)
    assert w.words.nbytes == 3 * 144 * 128
    assert asked("1M", [w], arch) == (1, requests, 3 * 144, 3 * 144)


@pytest.mark.parametrize("arch", [90, 80])
def test_bytes_are_bounded_and_shared_by_all_strips(asked, arch):
    w = weight(576, 192)
    assert asked("13K", [w], arch)[2:] == (3 * 34, 2 * 144 + 34), "4352 bytes of each: a bulk request and two lines"
    assert asked("383", [w], arch) == (0, 0, 0, 0), "less than a line of each strip"


def test_more_requests_of_a_strip_than_one_block_makes(asked):
    """A strip of a MiB on sm_80 takes 8,192 requests."""
    assert asked("1G", [weight(1 << 15, 64)], 80)[1:] == (8192, 8192, 8192)


def test_several_weights_share_the_bytes(asked):
    assert asked("8K", [weight(576, 192), weight(256, 64)]) == (2, 4, 4 * 16, 2 * 144 + 16 + 16)


def test_weights_that_are_not_packed_are_left(asked):
    assert asked("1M", [random_weight(64, 64, 32)]) == (0, 0, 0, 0)


def test_nothing_unless_asked_for(asked, monkeypatch, counts):
    assert asked("0", [weight(576, 192)]) == (0, 0, 0, 0)
    monkeypatch.delenv("CUTPQ_PREFETCH", raising=False)
    module.wanted_bytes.cache_clear()
    prefetch([weight(64, 64)])
    assert not counts


@pytest.mark.parametrize("wrong", ["much", "-1", "1.5M", "", "8MB"])
def test_wrong_number(asked, wrong):
    with pytest.raises(ValueError, match="CUTPQ_PREFETCH must be a number of bytes"):
        asked(wrong, [])


@pytest.mark.gpu
def test_captured_on_a_gpu(monkeypatch):
    """The weight keeps its bits, and the launch is a node of the graph."""
    from harness.gpu_clock import gpu_module

    xp = gpu_module()
    monkeypatch.setenv("CUTPQ_PREFETCH", "8K")
    module.wanted_bytes.cache_clear()
    w = prepare(random_weight(576, 192, 64, g_idx=np.arange(576) // 64), xp)
    before = w.words.get()
    with xp.cuda.Stream(non_blocking=True) as stream:
        prefetch([w])
        stream.begin_capture()
        prefetch([w])
        graph = stream.end_capture()
        graph.launch(stream)
        stream.synchronize()
    assert_exact(w.words.get(), before)
