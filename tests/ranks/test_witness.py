"""Who died first, in the order of the kernel's events, and silence where nobody did."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cutpq.ranks.failures import witness

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="inotify is Linux's")

# The module alone, as the witness itself runs it: importing the package would take longer than all else here.
RANK = f"""
import sys, time
sys.path.insert(0, {os.path.dirname(witness.__file__)!r})
from witness import Presence
presence = Presence(sys.argv[1], int(sys.argv[2]))
for how in sys.argv[3:]:
    presence.end(how)
print("here", flush=True)
time.sleep(60)
"""


@pytest.fixture
def folder():
    path = tempfile.mkdtemp()
    yield path
    shutil.rmtree(path, ignore_errors=True)


def start_witness(folder, ranks):
    command = [sys.executable, "-I", "-S", witness.__file__, folder, str(ranks), "a-host"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "watching\n"
    return process


def start_rank(folder, number, *ends):
    process = subprocess.Popen([sys.executable, "-c", RANK, folder, str(number), *ends], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"here\n"
    return process


def said(process):
    """What the witness said, when all its ranks are gone."""
    return process.communicate(timeout=20)[1]


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0]])
def test_the_first_of_many_deaths_is_named_however_late_they_are_read(folder, order):
    process = start_witness(folder, 3)
    ranks = [start_rank(folder, number) for number in range(3)]
    process.send_signal(19)  # SIGSTOP: it sees nothing until all are dead
    for number in order:
        ranks[number].kill()
        ranks[number].wait()
    process.send_signal(18)  # SIGCONT
    text = said(process)
    assert text.startswith(f"cutpq: rank {order[0]} (process {ranks[order[0]].pid} on a-host) was the first")
    assert text.count("\n") == 1
    assert not Path(folder).exists()


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
@pytest.mark.parametrize(
    ("ends", "named"),
    [((witness.LEFT,), True), ((witness.ABORTED,), False), ((witness.LEFT, witness.ABORTED), True)],
    ids=["left", "aborted", "left_then_aborted"],
)
def test_a_rank_that_said_why_is_not_named_nor_what_its_abort_kills(folder, ends, named, order):
    process = start_witness(folder, 2)
    ranks = [start_rank(folder, 0, *ends), start_rank(folder, 1)]
    for number in order:
        ranks[number].kill()
        ranks[number].wait()
    text = said(process)
    assert ("rank 1" in text) == named
    assert "rank 0" not in text


def test_a_folder_that_cannot_be_watched_means_no_witness(monkeypatch):
    made = []
    monkeypatch.setattr(witness.tempfile, "mkdtemp", lambda **_: made.append(os.path.join("/", "nowhere")) or made[0])
    assert witness._start_process(2, "a-host") is None
    assert made


def test_a_presence_whose_folder_is_gone_ends_in_silence(folder):
    presence = witness.Presence(folder, 0)
    shutil.rmtree(folder)
    presence.end(witness.LEFT)
