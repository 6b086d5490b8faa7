"""The package as a stranger gets it: installed beside its clone, editable or not, and as a wheel by itself.

Environments are made here without a network: what a wheel requires is linked into them from the environment that runs
the tests, and nothing else is.
"""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from email import message_from_bytes
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pytest
from assertions import assert_gemm_close
from packaging.requirements import Requirement

import cutpq as cq

ROOT = Path(__file__).resolve().parent.parent
TINY_LLAMA = ROOT / "tests" / "data" / "tiny-llama"
SOURCES = ("cuda_src", "softgpu")  # beside the package in a checkout, inside it in a wheel
PARTS = ("cutpq", *SOURCES, "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.cfg", "setup.py")
NVRTC = ("nvidia-cuda-nvrtc", "nvidia-cuda-runtime")  # of the CUDA extras, what compiling takes
USE = "import cutpq as cq; print(cq.__file__, cq.open_checkpoint.__name__)"


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a clone holds of the package, in a folder called cutpq."""
    folder = tmp_path_factory.mktemp("beside") / "cutpq"
    folder.mkdir()
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, folder / part)
    return folder


@pytest.fixture(scope="module")
def wheel(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a source distribution: what the one leaves out, the other cannot hold."""
    folder = tmp_path_factory.mktemp("dist")
    source = "import setuptools.build_meta as b, sys; print(b.build_sdist(sys.argv[1]))"
    run([sys.executable, "-c", source, str(folder)], clone)
    [archive] = folder.glob("*.tar.gz")
    run([*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(archive)], folder)
    [wheel] = folder.glob("*.whl")
    return wheel


PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


def run(command: list[str], folder: Path, **environment: str) -> str:
    """What a command prints; its failure is the test's."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def fresh_environment(folder: Path, *names: str) -> Path:
    """A virtual environment of Python's own modules and these distributions, with what they require; its Python."""
    venv.create(folder, symlinks=True)
    [packages] = folder.glob("lib/python*/site-packages")
    done: set[str] = set()
    while names:
        name, *rest = names
        found = distribution(name)
        required = [Requirement(text) for text in found.requires or ()]
        names = (*rest, *(r.name for r in required if r.marker is None or r.marker.evaluate({"extra": ""})))
        names = tuple(n for n in names if n not in done)
        for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            if not (packages / top).exists():
                (packages / top).symlink_to(found.locate_file(top))
        done.add(name)
    return folder / "bin" / "python"


def required(wheel: Path) -> list[str]:
    """The distributions that a wheel requires without any extra."""
    with zipfile.ZipFile(wheel) as held:
        [name] = [n for n in held.namelist() if n.endswith(".dist-info/METADATA")]
        requires = message_from_bytes(held.read(name)).get_all("Requires-Dist", [])
    return [r.name for r in map(Requirement, requires) if r.marker is None or r.marker.evaluate({"extra": ""})]


def builders() -> list[str]:
    """What setuptools needs to build here: of old, a package `wheel` beside it."""
    major, minor, *_ = map(int, distribution("setuptools").version.split(".")[:2])
    return ["setuptools"] if (major, minor) >= (70, 1) else ["setuptools", "wheel"]


def test_wheel_holds_every_module_and_every_source_for_the_gpu(wheel: Path, clone: Path) -> None:
    with zipfile.ZipFile(wheel) as held:
        names = {name for name in held.namelist() if ".dist-info/" not in name}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "cutpq").rglob("*.py")}
    files = [path for folder in SOURCES for path in (clone / folder).rglob("*") if path.is_file()]
    sources = {f"cutpq/{path.relative_to(clone).as_posix()}" for path in files}
    assert names == modules | sources | {"cutpq/py.typed", "cutpq/__init__.pyi"}


@pytest.mark.slow("makes virtual environments and installs into them")
def test_wheel_runs_in_a_fresh_environment(wheel: Path, clone: Path, tmp_path: Path) -> None:
    """The command line, a product, and one kernel compiled from the sources that the wheel holds."""
    python = fresh_environment(tmp_path / "venv", *required(wheel), *NVRTC)
    run([*PIP, f"--python={python}", "install", "--no-deps", str(wheel)], tmp_path)
    beside = clone.parent
    printed = run([str(python.parent / "cutpq"), "inspect", str(TINY_LLAMA)], beside)
    assert "28 quantized modules" in printed
    script = [str(python), str(ROOT / "tests" / "helpers" / "installed.py"), str(TINY_LLAMA), str(tmp_path / "xy.npz")]
    where, cubin = run(script, beside, CUTPQ_CACHE_DIR=str(tmp_path / "cache")).splitlines()
    assert Path(where).is_relative_to(tmp_path / "venv")
    assert Path(cubin).is_relative_to(tmp_path / "cache")
    assert Path(cubin).read_bytes()[:4] == b"\x7fELF"
    w = cq.open_checkpoint(TINY_LLAMA).weight("model.layers.0.mlp.down_proj")
    with np.load(tmp_path / "xy.npz") as made:
        assert_gemm_close(made["y"], made["x"], cq.dequantize(w))


@pytest.mark.slow("makes virtual environments and installs into them")
@pytest.mark.parametrize("how", [["--editable"], []], ids=["editable", "copied"])
def test_import_beside_the_clone(how: list[str], clone: Path, wheel: Path, tmp_path: Path) -> None:
    """`pip install -e ./cutpq && python -c ...` typed where the clone, a folder called cutpq, lies."""
    python = fresh_environment(tmp_path / "venv", *required(wheel), *builders())
    install = [*PIP, f"--python={python}", "install", "--no-deps", "--no-build-isolation", *how, "./cutpq"]
    run(install, clone.parent)
    home = clone if how else tmp_path / "venv"
    for folder in (clone.parent, tmp_path, clone):
        where, name = run([str(python), "-c", USE], folder).split()
        assert name == "open_checkpoint"
        if folder != clone:  # started inside the clone, Python takes its package
            assert Path(where).is_relative_to(home)


def test_cuda_extras_ask_for_a_numpy_whose_bfloat16_cupy_knows():
    """Below 2.1.2 CuPy does not register it, and every bfloat16 array on a GPU raises."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for extra in ("cuda12", "cuda13"):
        assert "numpy>=2.1.2" in setup["options.extras_require"][extra].split()
