"""The race detector, one program a rule of the memory model: the right order passes, each weaker one is named."""

from pathlib import Path

import numpy as np
import pytest

from cutpq.kernels import executor, source
from cutpq.kernels.executor import ExecutorError

CUDA_SRC = source.source_dir()

# Message passing: one thread writes data and then a flag, another sees the flag and then reads the data.
MESSAGE = """
__device__ unsigned load(unsigned* p) {
  unsigned v;
  asm volatile("LOAD %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
__device__ void store(unsigned* p, unsigned v) { asm volatile("STORE [%0], %1;" :: "l"(p), "r"(v) : "memory"); }
extern "C" __global__ void message(unsigned* data, unsigned* flag, unsigned* out, int writer, int reader) {
  const int self = blockIdx.x * blockDim.x + threadIdx.x;
  if (self == writer) { *data = 42; BEFORE store(flag, 1); }
  if (self == reader) { while (!load(flag)) {} BEHIND *out = *data; }
}
"""
WARP, BLOCK = 32, 64  # the reader's thread: of another warp, of another block
FENCE = {"cta": "__threadfence_block();", "gpu": "__threadfence();", "sys": "__threadfence_system();"}


def message(load, store, reader, before="", behind="", devices=1):
    """What the reader read, under the detector; -1 a number that is never written."""
    source = MESSAGE.replace("LOAD", f"ld.{load}.u32").replace("STORE", f"st.{store}.u32")
    source = source.replace("BEFORE", before).replace("BEHIND", behind)
    kernel = executor.build("message", source, Path(__file__).parent / "include", "check")
    data, flag, out = (np.zeros(1, np.uint32) for _ in range(3))
    if devices == 1:
        kernel((2,), (64,), (data, flag, out, np.int32(0), np.int32(reader)))
    else:
        calls = [(kernel, (1,), (64,), (data, flag, out, np.int32(w), np.int32(r)), 0) for w, r in ((0, -1), (-1, 0))]
        executor.launch(calls)
    return int(out[0])


# The narrowest scope that does, for each distance.
DISTANCES = {"warp": (WARP, 1, "cta"), "block": (BLOCK, 1, "gpu"), "device": (0, 2, "sys")}
SCOPES = ["cta", "gpu", "sys"]


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("scope", SCOPES)
def test_release_and_acquire_by_scope(distance, scope):
    reader, devices, needed = DISTANCES[distance]
    if SCOPES.index(scope) >= SCOPES.index(needed):
        assert message(f"acquire.{scope}", f"release.{scope}", reader, devices=devices) == 42
    else:
        with pytest.raises(ExecutorError, match="race: not ordered after"):
            message(f"acquire.{scope}", f"release.{scope}", reader, devices=devices)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("scope", SCOPES)
def test_fences_by_scope(distance, scope):
    reader, devices, needed = DISTANCES[distance]
    args = ("relaxed.sys", "relaxed.sys", reader, FENCE[scope], FENCE[scope], devices)
    if SCOPES.index(scope) >= SCOPES.index(needed):
        assert message(*args) == 42
    else:
        with pytest.raises(ExecutorError, match=r"read of global memory at byte 0 .*race: not ordered after the write"):
            message(*args)


@pytest.mark.parametrize(
    ("load", "store", "before", "behind"),
    [
        ("relaxed.gpu", "release.gpu", "", ""),
        ("acquire.gpu", "relaxed.gpu", "", ""),
        ("relaxed.gpu", "relaxed.gpu", FENCE["gpu"], ""),
        ("relaxed.gpu", "relaxed.gpu", "", FENCE["gpu"]),
        ("acquire.sys", "release.cta", "", ""),
        ("acquire.cta", "release.sys", "", ""),
    ],
    ids=["no acquire", "no release", "no fence behind", "no fence before", "narrow release", "narrow acquire"],
)
def test_half_an_order_is_none(load, store, before, behind):
    with pytest.raises(ExecutorError, match="race: not ordered after"):
        message(load, store, BLOCK, before, behind)


def test_a_plain_flag_races_itself():
    with pytest.raises(ExecutorError, match="race: not ordered after"):
        message("volatile", "global", BLOCK, FENCE["gpu"], FENCE["gpu"])


SHARED = """
extern "C" __global__ void shared(const int* in, int* out, int n) {
  __shared__ __align__(16) int x[256];
  const int t = threadIdx.x;
  BODY
}
"""


def shared(body, threads=64, mode="check"):
    data, out = np.arange(256, dtype=np.int32), np.zeros(256, np.int32)
    kernel = executor.build("shared", SHARED.replace("BODY", body), Path(__file__).parent, mode)
    kernel((1,), (threads,), (data, out, np.int32(threads)))
    return out[:threads]


def asm(text, operands=""):
    return f'asm volatile("{text};" :: {operands} : "memory");'


TARGET = '"r"((unsigned)__cvta_generic_to_shared(x + t)), "l"(in + t)'
COPY = asm("cp.async.ca.shared.global [%0], [%1], 4", TARGET)
COMMIT, WAIT = asm("cp.async.commit_group"), asm("cp.async.wait_group 0")
ARRIVE, SYNC = asm("bar.arrive 1, 64"), asm("bar.sync 1, 64")
RIGHT = {
    "barrier": "x[t] = in[t]; __syncthreads(); out[t] = x[t ^ 32];",
    "syncwarp": "x[t] = in[t]; __syncwarp(); out[t] = x[t ^ 1];",
    "cp.async": f"{COPY} {COMMIT} {WAIT} __syncthreads(); out[t] = x[t ^ 32];",
    "named barrier": f"if (t < 32) {{ x[t] = in[t]; {ARRIVE} }} else {{ {SYNC} out[t] = x[t ^ 32]; }}",
    "atomics": "if (t == 0) x[0] = 0; __syncthreads(); atomicAdd(x, 1); __syncthreads(); out[t] = x[0];",
    "disjoint bytes": "((char*)x)[t] = t; __syncthreads(); out[t] = ((char*)x)[t ^ 32];",
}  # fmt: skip
WRONG = {
    "no barrier": ("barrier", "__syncthreads();", "", "race|uninitialized"),
    "no syncwarp": ("syncwarp", "__syncwarp();", "", "race|uninitialized"),
    "no wait": ("cp.async", WAIT, "", "in flight"),
    "no commit": ("cp.async", COMMIT, "", "in flight"),
    "wait, but no barrier": ("cp.async", "__syncthreads();", "", "race|in flight|uninitialized"),
    "named barrier of the writers only": ("named barrier", SYNC, "", "race|uninitialized"),
    "addition that is not atomic": ("atomics", "atomicAdd(x, 1)", "x[0] += 1", "race"),
    "uninitialized": ("barrier", "x[t] = in[t];", "if (t < 32) x[t] = in[t];", "uninitialized"),
    "bytes that overlap": ("disjoint bytes", "[t] = t;", "[t / 2] = t;", "race"),
    "barrier after an exit": ("barrier", "x[t] = in[t];", "x[t] = in[t]; if (t >= 32) return;", "have ended"),
    "half a warp at a barrier": ("barrier", "x[t] = in[t];", "x[t] = in[t]; if (t & 16) return;", "have ended"),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("mode", ["fast", "check"])
def test_ordered_in_shared_memory(name, mode):
    assert shared(RIGHT[name], mode=mode).any()


@pytest.mark.parametrize("name", WRONG)
def test_not_ordered_in_shared_memory(name):
    right, old, new, message = WRONG[name]
    assert old in RIGHT[right]
    with pytest.raises(ExecutorError, match=message):
        shared(RIGHT[right].replace(old, new, 1))


def test_a_race_names_both_places_in_the_source():
    with pytest.raises(ExecutorError) as error:
        shared("x[t] = in[t];\n  out[t] = x[t ^ 32];")
    text = str(error.value)
    assert "kernel shared, block (0, 0, 0), thread (" in text
    assert text.count("PTX line") >= 1
    assert "shared.unit.cu:" in text


def test_a_deadlock_says_who_waits_where():
    with pytest.raises(ExecutorError, match=r"(?s)deadlock.*barrier 1.*PTX line"):
        shared(f"if (t < 32) {{ {SYNC} }}")


def test_waiting_for_what_nobody_writes_is_a_hang():
    with pytest.raises(ExecutorError, match="livelock"):
        message("acquire.gpu", "release.gpu", BLOCK, before="return;")


@pytest.mark.parametrize("index", ["256 + t", "-1 - t"])
def test_out_of_bounds(index):
    with pytest.raises(ExecutorError, match=r"out of bounds: 4 bytes at -?\d+ of 1024 bytes of shared memory"):
        shared(f"((volatile int*)x)[{index}] = t;", mode="fast")


# Two arrays of 64 words; what lies behind the first is the second, without a zone between them.
CARVED = """
#include "target.cuh"
extern "C" __global__ void carved(const int* in, int* out) {
  DYNAMIC_SHARED(smem);
  Carver carver(smem);
  volatile int* first = carver.take<int>(64);
  volatile int* second = carver.take<int>(64);
  const int t = threadIdx.x;
  first[t] = in[t], second[t] = in[t];
  __syncthreads();
  out[t] = FIRST + SECOND;
}
"""


def carved(mode, first="first[63 - t]", second="second[63 - t]", shared_bytes=512):
    source = CARVED.replace("FIRST", first).replace("SECOND", second)
    kernel = executor.build("carved", source, CUDA_SRC, mode)
    out = np.zeros(64, np.int32)
    kernel((1,), (64,), (np.arange(64, dtype=np.int32), out), shared_mem=shared_bytes)
    return out


@pytest.mark.parametrize("mode", ["fast", "check"])
def test_arrays_are_where_the_kernel_says(mode):
    assert (carved(mode) == 2 * np.arange(63, -1, -1)).all()


@pytest.mark.parametrize(
    "wrong",
    [{"first": "first[64 + t % 2]"}, {"first": "first[90]"}, {"second": "second[64]"}, {"second": "second[t - 1]"}],
    ids=["just behind", "within the zone", "behind the last", "before the second"],
)
def test_nobody_may_touch_what_lies_between_arrays(wrong):
    with pytest.raises(ExecutorError, match="in the red zone behind an array"):
        carved("check", **wrong)


@pytest.mark.parametrize(("mode", "message"), [("fast", "out of bounds"), ("check", "red zone")])
def test_arrays_that_need_more_than_the_launch_gave(mode, message):
    with pytest.raises(ExecutorError, match=message):
        carved(mode, shared_bytes=508)


def test_one_element_past_an_array():
    with pytest.raises(ExecutorError, match=r"out of bounds: 4 bytes .* 0 bytes past the end"):
        shared("out[256] = t;", threads=1, mode="fast")
