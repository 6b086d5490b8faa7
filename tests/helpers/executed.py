"""What kernels on NumPy arrays need of the machine."""

import shutil
from pathlib import Path

import pytest

from cutpq.kernels import executor, nvrtc


def skip_what_cannot_be_executed(items, folder: Path) -> None:
    """Mark the tests of a folder as skipped where the executor or its input cannot be made; GPU tests need neither."""
    reason = "" if shutil.which("g++") else "g++ compiles the executor of kernels, and is not here"
    try:
        nvrtc.find()
    except nvrtc.NvrtcMissing as missing:
        reason = str(missing)
    for item in items:  # of all folders
        if reason and folder in item.path.parents and item.get_closest_marker("gpu") is None:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(params=["fast", "check"])
def mode(request, monkeypatch):
    """Both modes of the executor: numbers alone, and races."""
    monkeypatch.setattr(executor, "default_mode", request.param)
    return request.param


@pytest.fixture
def settings(monkeypatch):
    """The executor's settings, back to their defaults after the test."""
    monkeypatch.setattr(executor, "settings", executor.Settings())
    return executor.settings


@pytest.fixture
def counts(monkeypatch, settings):
    """What each launch did, in fast mode, since the other does not count."""
    monkeypatch.setattr(executor, "default_mode", "fast")
    settings.counts = []
    return settings.counts
