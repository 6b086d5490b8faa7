import shutil

import cpu_cuda
import pytest


def pytest_collection_modifyitems(items):
    if shutil.which("g++") is None:
        for item in items:
            item.add_marker(pytest.mark.skip(reason="g++ compiles the kernels for the CPU, and is not here"))


@pytest.fixture(params=["fast", "check"])
def mode(request, monkeypatch):
    monkeypatch.setattr(cpu_cuda, "default_mode", request.param)
    return request.param


@pytest.fixture
def settings(monkeypatch):
    """The launch settings, back to their defaults after the test."""
    fresh = cpu_cuda.Settings()
    monkeypatch.setattr(cpu_cuda, "settings", fresh)
    return fresh
