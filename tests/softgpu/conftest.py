from pathlib import Path

from executed import mode, settings, skip_what_cannot_be_executed  # noqa: F401  fixtures


def pytest_collection_modifyitems(items):
    skip_what_cannot_be_executed(items, Path(__file__).parent)
