"""Compiling, caching and launching kernels: NVRTC needs no GPU, and the launch is checked before it gets to one."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from harness.gpu_clock import gpu_module

from cutpq.kernels import executor, nvrtc, source
from cutpq.kernels import load as kernels
from cutpq.kernels.compile import ARCHITECTURES, Resources, architecture, compile_kernel, resources_from
from cutpq.kernels.config import BFLOAT16, FLOAT16, Device
from cutpq.ops import gemm_config
from cutpq.ops.gather import GatherConfig
from cutpq.shipped import shipped

ROOT = Path(__file__).resolve().parents[2]


def has_nvrtc():
    try:
        nvrtc.find()
    except nvrtc.NvrtcMissing:
        return False
    return True


needs_nvrtc = pytest.mark.skipif(not has_nvrtc(), reason="NVRTC is not here: pip install nvidia-cuda-nvrtc")
GATHER = GatherConfig()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CUTPQ_CACHE_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def copied_sources(tmp_path, monkeypatch):
    folder = tmp_path / "cuda_src"
    shutil.copytree(ROOT / "cuda_src", folder)
    monkeypatch.setattr(source, "source_dir", lambda: folder)
    return folder


# ---- what is compiled


def test_first_line_is_a_digest_of_all_that_is_included(copied_sources):
    before = source.translation_unit("gather_columns", GATHER)
    (copied_sources / "ptx" / "mma.cuh").write_text("// a header that is not included\n")
    assert source.translation_unit("gather_columns", GATHER) == before
    with (copied_sources / "ptx" / "red_zone.cuh").open("a") as header:
        header.write("// a header of the headers has changed\n")
    after = source.translation_unit("gather_columns", GATHER)
    assert before.splitlines()[0] != after.splitlines()[0]
    assert (
        before.splitlines()[1:]
        == after.splitlines()[1:]
        == ["constexpr int THREADS = 128;", '#include "gather_columns.cu"']
    )


def test_signature_is_read_from_the_source():
    parameters = source.signature("rmsnorm_gather")
    assert [p.name for p in parameters] == ["x", "weight", "perm", "y", "K", "epsilon"]
    assert [p.type for p in parameters] == ["act_t", "act_t", "int", "act_t", "int", "float"]
    assert [p.pointer for p in parameters] == [True, True, True, True, False, False]
    assert [p.const for p in parameters] == [True, True, True, False, False, False]


@pytest.mark.parametrize("path", sorted((ROOT / "cuda_src").glob("*.cu")), ids=lambda p: p.stem)
def test_every_kernel_is_named_as_its_file(path):
    assert source.signature(path.stem)


def test_assembly_lives_in_ptx_only():
    for path in (ROOT / "cuda_src").rglob("*.cu*"):
        if path.parent.name != "ptx":
            assert "asm" not in path.read_text().split(), f"{path.name} has assembly outside of ptx/"


def test_shipped_configs_cover_every_kernel():
    assert {name for name, _ in shipped(90)} == {p.stem for p in (ROOT / "cuda_src").glob("*.cu")}


# ---- compiling


def far_from_spilling(name, config):
    """Up to 32 tokens and 8 warps leave the product 75 of the 255 registers; 64 tokens 15, and 16 warps none of 128."""
    return name == "gemm_w4a16" and config.BLOCK_M <= 32 and config.WARPS_N * config.WARPS_K <= 8


def one_config_of_every_kernel():
    """(architecture, kernel, configuration), one architecture after the other; of the product one for each of them."""
    products = [("gemm_w4a16", config) for name, config in shipped(90) if name == "gemm_w4a16"]
    near = [each for each in products if not far_from_spilling(*each)]
    others = [each for each in dict(shipped(90)).items() if each[0] != "gemm_w4a16"]
    chosen = near[:: len(near) // len(ARCHITECTURES)][: len(ARCHITECTURES)] + others
    return [(ARCHITECTURES[k % len(ARCHITECTURES)], *each) for k, each in enumerate(chosen)]


def every_fifth_config(arch):
    """The next one for the next architecture, and of those far from spilling a fifth of these.

    CUTPQ_TEST_EVERY_CONFIG=1 takes all for all, five minutes on two cores: for who changes a configuration or a
    kernel's registers.
    """
    configs = shipped(capability(arch))
    if os.environ.get("CUTPQ_TEST_EVERY_CONFIG") == "1":
        return configs
    mine = configs[ARCHITECTURES.index(arch) :: len(ARCHITECTURES)]
    near = [(name, config) for name, config in mine if not far_from_spilling(name, config)]
    return near + [each for each in mine if each not in near][::5]


def capability(arch):
    return int(arch[3:].rstrip("a"))


def assert_nothing_spills(wanted):
    known = nvrtc.find().architectures()
    wanted = [each for each in wanted if capability(each[0]) in known]
    if not wanted:
        pytest.skip(f"this NVRTC knows {sorted(known)}")
    with ThreadPoolExecutor() as pool:
        made = list(pool.map(lambda each: (each, compile_kernel(*each[1:], each[0]).resources), wanted))
    assert not [(each, resources) for each, resources in made if resources.spill_bytes or resources.stack_bytes]
    assert len(made) == len(wanted)


@needs_nvrtc
def test_a_config_of_every_kernel_compiles_without_spills():
    wanted = one_config_of_every_kernel()
    assert {name for _, name, _ in wanted} == {name for name, _ in shipped(90)}
    assert_nothing_spills(wanted)


@needs_nvrtc
@pytest.mark.slow("compiles two hundred shipped configurations")
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_shipped_config_compiles_without_spills(arch):
    assert_nothing_spills([(arch, *each) for each in every_fifth_config(arch)])


def disassembler():
    """nvdisasm, of a CUDA installation or the wheel nvidia-cuda-nvdisasm."""
    beside = nvrtc.find().library.parent.parent / "bin" / "nvdisasm" if has_nvrtc() else Path()
    return str(beside) if beside.is_file() else shutil.which("nvdisasm")


@needs_nvrtc
@pytest.mark.skipif(not disassembler(), reason="nvdisasm is not here: pip install nvidia-cuda-nvdisasm")
@pytest.mark.parametrize(("bits", "M"), [(4, 1), (4, 16), (4, 64), (8, 16), (8, 64)])
@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16])
def test_machine_code_of_gemm(M, dtype, bits):
    """16-byte copies that leave L2 first, 16-byte loads, tensor cores; per tile of codes no more than the formula."""
    problem = gemm_config.GemmProblem(M, 4096, 4096, dtype, "uniform", 128, 1 << (bits - 1), bits=bits)
    config, _ = gemm_config.select_gemm(problem, Device(90, 132))
    path = compile_kernel("gemm_w4a16", config, "sm_90a").path
    code = subprocess.run([disassembler(), "-c", str(path)], capture_output=True, text=True, check=True).stdout
    tiles, steps = 4 * config.SLAB // 16, config.SLAB // 16
    assert code.count("HMMA.16816.F32") == tiles * config.BLOCK_M // 8
    assert code.count("LDSM.16.M88.4") == steps * config.BLOCK_M // 16
    assert len(re.findall(r"LDS\.128", code)) >= config.lane_codes
    assert len(re.findall(r"LDGSTS\.E\.BYPASS\.128", code)) >= 2 * config.lane_codes
    assert len(re.findall(r"HMUL2|HADD2|HFMA2", code)) <= tiles * (8 if dtype == FLOAT16 else 12) + 16
    assert not re.search(r"\b(LDL|STL)\b", code)


@needs_nvrtc
@pytest.mark.parametrize("damage", ["cut_short", "a_changed_byte", "no_cubin", "no_json", "half_a_json", "old_json"])
def test_a_damaged_cubin_is_compiled_again(cache, damage):
    cubin = compile_kernel("gather_columns", GATHER, "sm_80")
    whole, about = cubin.path.read_bytes(), cubin.path.with_name("about.json")
    match damage:
        case "cut_short":
            cubin.path.write_bytes(whole[: len(whole) // 2])
        case "a_changed_byte":
            cubin.path.write_bytes(whole[:99] + bytes([whole[99] ^ 1]) + whole[100:])
        case "no_cubin":
            cubin.path.unlink()
        case "no_json":
            about.unlink()
        case "half_a_json":
            about.write_text(about.read_text()[:20])
        case "old_json":
            about.write_text('{"registers": 1, "stack_bytes": 0, "spill_bytes": 0}')
    again = compile_kernel("gather_columns", GATHER, "sm_80")
    assert again == cubin
    assert again.path.read_bytes() == whole
    assert [p.name for p in cubin.path.parents[1].iterdir()] == [cubin.path.parent.name], "nothing else may be left"


@pytest.mark.gpu
def test_a_cubin_that_the_driver_refuses_is_compiled_again(cache):
    """Its digest is right, its contents are of another driver or none."""
    xp = gpu_module()
    gpu = kernels.device(xp)
    cubin = compile_kernel(
        "gather_columns", GATHER, architecture(gpu.arch), xp.cuda.runtime.runtimeGetVersion() // 1000
    )
    about = cubin.path.with_name("about.json")
    whole, junk = cubin.path.read_bytes(), b"no cubin at all"
    cubin.path.write_bytes(junk)
    digests = [hashlib.sha256(data).hexdigest() for data in (whole, junk)]
    about.write_text(about.read_text().replace(*digests))
    kernels._load_on_gpu.cache_clear()
    kernels.load("gather_columns", GATHER, xp)
    assert cubin.path.read_bytes() == whole


@needs_nvrtc
def test_second_compile_comes_from_the_cache(cache, monkeypatch):
    first = compile_kernel("gather_columns", GATHER, "sm_80")
    monkeypatch.setattr(nvrtc.Nvrtc, "compile", lambda *_: pytest.fail("compiled again"))
    assert compile_kernel("gather_columns", GATHER, "sm_80") == first
    assert first.path.read_bytes()[:4] == b"\x7fELF"


@needs_nvrtc
def test_another_header_architecture_or_constant_is_another_cubin(cache, copied_sources):
    paths = [compile_kernel("gather_columns", GATHER, "sm_80").path]
    paths.append(compile_kernel("gather_columns", GATHER, "sm_90a").path)
    paths.append(compile_kernel("gather_columns", GatherConfig(THREADS=64), "sm_80").path)
    with (copied_sources / "target.cuh").open("a") as header:
        header.write("// a change\n")
    paths.append(compile_kernel("gather_columns", GATHER, "sm_80").path)
    assert len({p.parent for p in paths}) == 4


@needs_nvrtc
def test_ranks_that_compile_at_once_end_with_one_result(cache):
    code = (
        "from cutpq.kernels.compile import compile_kernel; from cutpq.ops.gather import GatherConfig;"
        "print(compile_kernel('gather_columns', GatherConfig(), 'sm_80').path)"
    )
    ranks = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    paths = {rank.communicate(timeout=120)[0] for rank in ranks}
    assert [rank.returncode for rank in ranks] == [0, 0, 0]
    assert len(paths) == 1
    assert [p.name for p in (cache / "kernels").iterdir()] == [Path(paths.pop()).parent.name]


@needs_nvrtc
@pytest.mark.parametrize("what", ["cubin", "ptx"])
def test_threads_that_want_the_same_kernel_wait_for_the_first(cache, monkeypatch, what):
    compiled, compile_it = [], nvrtc.Nvrtc.compile
    monkeypatch.setattr(nvrtc.Nvrtc, "compile", lambda *args, **more: compiled.append(1) or compile_it(*args, **more))

    def want(_):
        if what == "cubin":
            return compile_kernel("gather_columns", GATHER, "sm_80")
        unit = source.translation_unit("gather_columns", GATHER)
        return executor.compile_ptx("gather_columns", unit, source.source_dir(), 90, "fast")

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(want, range(4)))
    assert results[1:] == results[:1] * 3
    assert len(compiled) == 1


@needs_nvrtc
def test_compiler_error_names_kernel_config_architecture_and_line(cache, copied_sources):
    kernel = copied_sources / "gather_columns.cu"
    kernel.write_text(kernel.read_text().replace("int source[8];", "int source[wrong];"))
    line = 1 + kernel.read_text().split("int source[wrong];")[0].count("\n")
    words = rf'(?s)gather_columns with GatherConfig\(THREADS=128\) .* sm_80:.*gather_columns\.cu\({line}\).*"wrong"'
    with pytest.raises(source.KernelError, match=words):
        compile_kernel("gather_columns", GATHER, "sm_80")


def test_without_nvrtc_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(nvrtc, "_candidates", lambda: iter(()))
    nvrtc.find.cache_clear()
    with pytest.raises(source.KernelError, match="pip install nvidia-cuda-nvrtc"):
        compile_kernel("gather_columns", GATHER, "sm_80")
    nvrtc.find.cache_clear()


def test_resources_are_read_from_what_ptxas_says():
    log = (
        "ptxas info    : 0 bytes gmem\nptxas info    : Function properties for f\n"
        "    8 bytes stack frame, 816 bytes spill stores, 4 bytes spill loads\n"
        "ptxas info    : Used 40 registers, used 1 barriers"
    )
    assert resources_from(log) == Resources(registers=40, stack_bytes=8, spill_bytes=820)
    with pytest.raises(source.KernelError, match="did not report"):
        resources_from("silence")


# ---- launching


class Recorder:
    """Takes the place of a compiled function."""

    def __call__(self, grid, block, args, shared_mem):
        self.call = grid, block, args, shared_mem


@pytest.fixture
def rmsnorm():
    types = {"act_t": np.dtype(ml_dtypes.bfloat16)}
    return kernels.Kernel("rmsnorm_gather", source.signature("rmsnorm_gather"), types, Recorder())


def arguments(**changed):
    row = np.zeros((1, 8), ml_dtypes.bfloat16)
    args = dict(x=row, weight=row[0], perm=np.zeros(8, np.int32), y=row.copy(), K=8, epsilon=1e-5)
    return (args | changed).values()


def test_arguments_get_their_declared_types(rmsnorm):
    rmsnorm((3,), 256, *arguments(), smem_bytes=48)
    grid, block, args, shared_mem = rmsnorm.function.call
    assert (grid, block, shared_mem) == ((3,), (256,), 48)
    assert [type(a) for a in args[4:]] == [np.int32, np.float32]


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        (dict(x=np.zeros((1, 8), np.float16)), TypeError, "rmsnorm_gather: x must be bfloat16, got float16"),
        (dict(perm=np.zeros(8, np.int64)), TypeError, "perm must be int32"),
        (dict(perm=np.zeros(16, np.int32)[::2]), ValueError, "perm must be contiguous"),
        (dict(y=8), TypeError, "y must be an array, got int"),
    ],
)
def test_arguments_of_the_wrong_kind_are_refused(rmsnorm, changed, error, message):
    with pytest.raises(error, match=message):
        rmsnorm((1,), 256, *arguments(**changed))


def test_missing_argument_is_refused(rmsnorm):
    with pytest.raises(TypeError, match="takes 6 arguments, got 5"):
        rmsnorm((1,), 256, *list(arguments())[:5])


def test_numpy_arrays_go_to_kernels_only_when_asked(monkeypatch):
    monkeypatch.delenv("CUTPQ_HOST_KERNELS", raising=False)
    assert not kernels.usable(np)
    monkeypatch.setenv("CUTPQ_HOST_KERNELS", "1")
    assert kernels.usable(np)


def test_a_launch_is_kept_for_each_device_and_not_where_kernels_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel of one device cannot run on another; NumPy's may be run in another mode next time."""
    gpu: Any = ModuleType("gpu")
    current = 0
    gpu.cuda = SimpleNamespace(runtime=SimpleNamespace(getDevice=lambda: current))
    made = []

    @kernels.kept
    def make(xp: ModuleType, size: int) -> int:
        made.append((xp, current, size))
        return len(made)

    assert [make(gpu, 1), make(gpu, 2), make(gpu, 1)] == [1, 2, 1]
    current = 1
    assert [make(gpu, 1), make(gpu, 1)] == [3, 3]
    assert [make(np, 1), make(np, 1)] == [4, 5]
