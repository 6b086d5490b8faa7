import shutil
from pathlib import Path

import pytest

from cutpq.kernels import nvrtc


def pytest_collection_modifyitems(items):
    reason = "" if shutil.which("g++") else "g++ compiles the executor, and is not here"
    try:
        nvrtc.find()
    except nvrtc.NvrtcMissing as missing:
        reason = str(missing)
    for item in items:  # the hook is given the items of all folders
        if reason and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))
