"""What pytest says of tests that several processes run: nothing is lost, and nothing is run twice."""

import os
import re
import sys
from pathlib import Path

import pytest
from jobs import run

CONFTEST = """
import processes, pytest
@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session):
    count = processes.count(session)
    return processes.run(session, count) if count > 1 else None
"""

# Each file notes which process ran it; `once` is made once for a file.
FILE = """
import os, pytest, time
@pytest.fixture(scope="module")
def once():
    with open("once.txt", "a") as f: f.write(f"{__name__} {os.getpid()}\\n")
def test_first(once): time.sleep(0.1)
def test_second(once): time.sleep(0.1)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    for name in "abcd":
        (tmp_path / f"test_{name}.py").write_text(FILE)
    return tmp_path


def pytest_in(folder: Path, *flags: str, processes: int = 3):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *flags]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    more = {"PYTHONPATH": path, "CUTPQ_TEST_PROCESSES": str(processes), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return run(["env", "-C", str(folder), *command], **more)


def test_each_file_is_run_once_by_one_process(folder: Path) -> None:
    job = pytest_in(folder, "-v", "--junitxml=out.xml")
    assert job.status == 0, job.out + job.err
    assert "8 passed" in job.out
    files, processes = zip(*[line.split() for line in (folder / "once.txt").read_text().splitlines()], strict=True)
    assert sorted(files) == ["test_a", "test_b", "test_c", "test_d"]
    assert len(set(processes)) > 1
    assert len(re.findall(r"test_\w\.py::test_(first|second) PASSED", job.out)) == 8
    assert (folder / "out.xml").read_text().count("<testcase") == 8


def test_one_file_and_one_process_are_pytests_own(folder: Path) -> None:
    assert "2 passed" in pytest_in(folder, "test_a.py").out
    assert "8 passed" in pytest_in(folder, processes=1).out
    _, processes = zip(*[line.split() for line in (folder / "once.txt").read_text().splitlines()], strict=True)
    assert [processes.count(process) for process in dict.fromkeys(processes)] == [1, 4]


def test_a_failure_is_shown_with_its_output(folder: Path) -> None:
    (folder / "test_b.py").write_text("def test_bad(tmp_path):\n    print('in', 'the test')\n    assert 2 + 2 == 5\n")
    job = pytest_in(folder, "-q")
    assert job.status == 1
    assert "assert (2 + 2) == 5" in job.out
    assert "in the test" in job.out
    assert "1 failed, 6 passed" in job.out


def test_the_first_failure_stops_all(folder: Path) -> None:
    (folder / "test_a.py").write_text("def test_bad(): assert 0\n")
    (folder / "test_b.py").write_text(
        "import time\n" + "".join(f"def test_{i}(): time.sleep(0.2)\n" for i in range(50))
    )
    job = pytest_in(folder, "-q", "-x", processes=2)
    assert job.status == 1
    assert "stopping after 1 failures" in job.out
    passed = re.search(r"1 failed(?:, (\d+) passed)?", job.out)
    assert int(passed[1] or 0) < 20


def test_a_warning_is_shown(folder: Path) -> None:
    (folder / "test_b.py").write_text("import warnings\ndef test_it(): warnings.warn('of a test')\n")
    job = pytest_in(folder, "-q")
    assert "UserWarning: of a test" in job.out
    assert "7 passed, 1 warning" in job.out


@pytest.mark.parametrize(("how", "status"), [("os.kill(os.getpid(), 9)", -9), ("os._exit(0)", 0)])
def test_a_test_that_ends_its_process_fails_the_run_and_is_named(folder: Path, how: str, status: int) -> None:
    (folder / "test_b.py").write_text(f"import os\ndef test_it(): {how}\n")
    job = pytest_in(folder, "-q")
    assert job.status == 1
    assert f"test_b.py::test_it ended the process of its tests, exit status {status}" in job.out
