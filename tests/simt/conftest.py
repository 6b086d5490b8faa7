import os
import shutil
from pathlib import Path

import cpu_cuda
import numpy as np
import pytest
from harness.gpu_clock import gpu_module

from cutpq.kernels import source


def pytest_collection_modifyitems(items):
    if shutil.which("g++") is None:
        for item in items:
            here = Path(__file__).parent in item.path.parents  # the hook is given the items of all folders
            if here and item.get_closest_marker("gpu") is None:
                item.add_marker(pytest.mark.skip(reason="g++ compiles the kernels for the CPU, and is not here"))


@pytest.fixture(params=["fast", "check"])
def mode(request, monkeypatch):
    monkeypatch.setattr(cpu_cuda, "default_mode", request.param)
    return request.param


@pytest.fixture(params=["fast", "check", pytest.param("gpu", marks=pytest.mark.gpu)])
def checked_xp(request, monkeypatch):
    """As xp, with NumPy in both modes of the CPU runtime: numbers alone, and races."""
    if request.param == "gpu":
        return gpu_module()
    monkeypatch.setattr(cpu_cuda, "default_mode", request.param)
    return np


@pytest.fixture
def settings(monkeypatch):
    """The launch settings, back to their defaults after the test."""
    fresh = cpu_cuda.Settings()
    monkeypatch.setattr(cpu_cuda, "settings", fresh)
    return fresh


@pytest.fixture(autouse=True, scope="session")
def _mutated_sources():
    """Take the kernels from another folder: mutants.py plants its bugs there."""
    sources = os.environ.get("CUTPQ_MUTATED_SOURCES")
    with pytest.MonkeyPatch.context() as patch:
        if sources:
            patch.setattr(source, "source_dir", lambda: Path(sources))
        yield
