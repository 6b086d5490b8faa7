"""Makes bench/ and tests/ importable: benches are scripts, and tests share helpers. The same tests with CuPy."""

import os
import sys
import tempfile
import threading
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
for folder in (ROOT / "bench", ROOT / "tests" / "helpers"):
    sys.path.insert(0, str(folder))

import harness.blas_single  # noqa: E402, F401  before NumPy: ranks are threads in most tests
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from harness.gpu_clock import NoGpu, gpu_module  # noqa: E402


def pytest_configure(config):
    """Tests start hundreds of processes: where the environment wants no compiled modules, they have them elsewhere."""
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
        folder = tempfile.TemporaryDirectory(prefix="cutpq-pycache-")
        os.environ["PYTHONPYCACHEPREFIX"] = folder.name
        config.add_cleanup(folder.cleanup)


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too, as .ci/run does")


def pytest_runtest_setup(item):
    """Skips from one place, which the summary makes one line of."""
    if item.get_closest_marker("gpu") and (reason := without_gpu()):
        pytest.skip(reason)
    if (slow := item.get_closest_marker("slow")) and not item.config.getoption("slow"):
        pytest.skip(f"without --slow: {slow.args[0]}")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """What -n auto means, which pyproject.toml says: none for one file or with a GPU, else one more than cores.

    One works while another waits, as tests of ranks that never come do for most of their time.
    """
    files = {arg.partition("::")[0] for arg in config.args}
    one = len(files) == 1 and Path(*files).is_file()
    return 0 if one or not without_gpu() else min(8, len(os.sched_getaffinity(0)) + 1)


@cache
def without_gpu():
    """Why no test can run on a GPU; empty where one can.

    CUTPQ_TEST_POOL=0 switches CuPy's memory pool off: each array is then an allocation of its own, and a read or write
    beyond its end an error to compute-sanitizer and to the software device.
    """
    try:
        cupy = gpu_module()
    except NoGpu as error:
        return str(error)
    if os.environ.get("CUTPQ_TEST_POOL") == "0":
        cupy.cuda.set_allocator(None)
    compile_one_at_a_time()
    return ""


def compile_one_at_a_time():
    """Ranks that are threads want the same kernel of CuPy's at once: one compiles it, the others find it compiled."""
    from cupy.cuda import compiler

    compile_it, lock = compiler._compile_with_cache_cuda, threading.RLock()

    def wait_and_compile(*args, **options):
        with lock:
            return compile_it(*args, **options)

    compiler._compile_with_cache_cuda = wait_and_compile


@pytest.fixture(params=["numpy", pytest.param("cupy", marks=pytest.mark.gpu)])
def xp(request):
    """Whose arrays a test is about. Data is made by NumPy; xp.asarray moves it, to_numpy brings results back."""
    return np if request.param == "numpy" else gpu_module()
