import os
from pathlib import Path

import pytest
from executed import counts, settings, skip_what_cannot_be_executed  # noqa: F401  fixtures

from cutpq.kernels import executor, source


def pytest_collection_modifyitems(items):
    skip_what_cannot_be_executed(items, Path(__file__).parent)


@pytest.fixture(autouse=True)
def _races(monkeypatch):
    """Check mode, which sees what fast mode does and races; softgpu's tests, and those of models, run fast mode."""
    monkeypatch.setattr(executor, "default_mode", "check")


@pytest.fixture(autouse=True, scope="session")
def _mutated_sources():
    """Take the kernels from another folder: mutants.py plants its bugs there."""
    sources = os.environ.get("CUTPQ_MUTATED_SOURCES")
    with pytest.MonkeyPatch.context() as patch:
        if sources:
            patch.setattr(source, "source_dir", lambda: Path(sources))
        yield
