import os
from pathlib import Path

import numpy as np
import pytest
from executed import mode, settings, skip_what_cannot_be_executed  # noqa: F401  fixtures
from harness.gpu_clock import gpu_module

from cutpq.kernels import executor, source


def pytest_collection_modifyitems(items):
    skip_what_cannot_be_executed(items, Path(__file__).parent)


@pytest.fixture(params=["fast", "check", pytest.param("gpu", marks=pytest.mark.gpu)])
def checked_xp(request, monkeypatch):
    """As xp, with NumPy in both modes of the executor: numbers alone, and races."""
    if request.param == "gpu":
        return gpu_module()
    monkeypatch.setattr(executor, "default_mode", request.param)
    return np


@pytest.fixture(params=["check", pytest.param("gpu", marks=pytest.mark.gpu)])
def race_checked_xp(request, monkeypatch):
    """As checked_xp without the mode of numbers alone: for tests where each case compiles kernels of its own."""
    if request.param == "gpu":
        return gpu_module()
    monkeypatch.setattr(executor, "default_mode", request.param)
    return np


@pytest.fixture(autouse=True, scope="session")
def _mutated_sources():
    """Take the kernels from another folder: mutants.py plants its bugs there."""
    sources = os.environ.get("CUTPQ_MUTATED_SOURCES")
    with pytest.MonkeyPatch.context() as patch:
        if sources:
            patch.setattr(source, "source_dir", lambda: Path(sources))
        yield
