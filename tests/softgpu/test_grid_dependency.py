"""Programmatic dependent launch in the race detector: what a kernel may do before griddepcontrol.wait, and what not."""

import numpy as np
import pytest

from cutpq.kernels import executor, source
from cutpq.kernels.executor import ExecutorError

CUDA_SRC = source.source_dir()
THREADS, N = 64, 128

# y[i] = x[i] + w[i] by two blocks; scratch is read and written by every kernel of a chain.
ADD = """
#include "ptx/dependent_launch.cuh"
extern "C" __global__ void add(const int* x, const int* w, int* y, int* scratch) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  BODY
}
"""
WAIT, START = "wait_for_earlier_kernels();", "let_next_kernel_start();"
RIGHT = f"{START} const int weight = w[i]; {WAIT} y[i] = x[i] + weight; scratch[i]++;"


def add(body=RIGHT, early=True):
    return executor.build("add", ADD.replace("BODY", body), CUDA_SRC, "check", early=early)


def chain(*kernels):
    """What the last of these writes, each of which adds 1 to what the one before it wrote."""
    arrays = [np.zeros(N, np.int32) for _ in range(len(kernels) + 1)]
    w, scratch = np.ones(N, np.int32), np.zeros(N, np.int32)
    executor.launch(
        [
            [
                (kernel, (N // THREADS,), (THREADS,), (arrays[n], w, arrays[n + 1], scratch), 0)
                for n, kernel in enumerate(kernels)
            ]
        ]
    )
    return arrays[-1]


def first():
    return add(early=False)


@pytest.mark.parametrize(
    "body",
    [
        RIGHT,
        RIGHT.replace(START, "") + START,
        f"{WAIT} {RIGHT.replace(WAIT, '')}",
        RIGHT.replace(WAIT, f"if (threadIdx.x == 0) {WAIT} __syncthreads();"),
        RIGHT.replace(WAIT, f"__shared__ int s[{THREADS}]; s[threadIdx.x] = weight; {WAIT}"),
    ],
    ids=["weights before the wait", "late start of the next", "waits first", "one thread for all", "shared memory"],
)
@pytest.mark.parametrize("length", [2, 4])
def test_ordered_by_the_wait(body, length):
    assert (chain(first(), *[add(body)] * (length - 1)) == length).all()


COPY = (
    "__shared__ int s[64]; "
    'asm volatile("cp.async.ca.shared.global [%0], [%1], 4; cp.async.commit_group;" '
    ':: "r"((unsigned)__cvta_generic_to_shared(s + threadIdx.x)), "l"(x + i) : "memory");'
)
WRONG = {
    "no wait": RIGHT.replace(WAIT, ""),
    "start of the next taken for a wait": RIGHT.replace(WAIT, START),
    "input before the wait": f"const int before = x[i]; {RIGHT.replace('x[i]', 'before')}",
    "input by the read-only cache": f"const int before = __ldg(x + i); {RIGHT.replace('x[i]', 'before')}",
    "copy issued before the wait": f'{COPY} {RIGHT} asm volatile("cp.async.wait_all;" ::: "memory");',
    "wait of one thread": RIGHT.replace(WAIT, f"if (threadIdx.x == 0) {WAIT}"),
    "wait of one block": RIGHT.replace(WAIT, f"if (blockIdx.x == 0) {WAIT}"),
    "barrier before the wait": RIGHT.replace(WAIT, f"__syncthreads(); if (threadIdx.x == 0) {WAIT}"),
    "write over what is read": f"scratch[i] = 0; {RIGHT}",
    "write to what nobody reads": RIGHT.replace(WAIT, f"scratch[i] = weight; {WAIT}").replace("scratch[i]++;", ""),
}


@pytest.mark.parametrize("name", WRONG)
def test_not_ordered_before_the_wait(name):
    with pytest.raises(
        ExecutorError, match=r"(?s)kernel add.*an allocation of 512: race.* of launch 0, a launch that may"
    ):
        chain(first(), add(WRONG[name]))
    assert chain(first(), add(WRONG[name], early=False)).any(), "in order all of this is right"


def test_write_over_what_the_kernel_before_reads():
    """Through the read-only cache too: the kernel before it may read it only now."""
    reads = f"y[i] = __ldg(x + i) + w[i]; {WAIT}"
    over = add("((int*)w)[i] = 5; wait_for_earlier_kernels(); y[i] = x[i];")
    with pytest.raises(ExecutorError, match=r"write to .*race: not ordered after a read by .* of launch 0"):
        chain(add(reads, early=False), over)


def test_kernel_that_does_not_wait_breaks_the_chain():
    """The third waits for the second, whose end says nothing about the first: their scratch may still be in use."""
    careless = add(f"{START} y[i] = w[i];")
    with pytest.raises(ExecutorError, match=r"of launch 0, a launch that may still run"):
        chain(first(), careless, add())
    assert (chain(first(), add(f"{START} y[i] = w[i]; {WAIT}"), add()) == 2).all()


def test_start_of_the_next_orders_nothing():
    """The third may have started with the second, before that one's wait for the first."""
    early = add(f"scratch[i]++; {WAIT} y[i] = x[i] + w[i];")
    with pytest.raises(ExecutorError, match=r"of launch 0, a launch that may still run"):
        chain(first(), add(f"{WAIT} {START} y[i] = x[i] + w[i];"), early)


def test_race_shows_the_line_of_each_kernel():
    with pytest.raises(ExecutorError) as error:
        chain(first(), add(WRONG["no wait"]))
    assert str(error.value).count("add.unit.cu:5") == 2


def test_below_sm_90_there_is_nothing_to_execute(settings):
    settings.arch = 80
    assert b"griddepcontrol" not in add().ptx
    settings.arch = 90
    assert add().ptx.count(b"griddepcontrol.") == 2
