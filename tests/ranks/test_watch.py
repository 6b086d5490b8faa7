"""What rank 0 makes of the calls that it hears of. By MPI, with GPUs that never come to an end: test_mpi.py."""

import queue
import threading
import time

import pytest

from cutpq.ranks.failures import watch
from cutpq.ranks.failures.patience import RanksDisagreeError
from cutpq.ranks.failures.watch import CallLog, Channel, Watch


def heard(size, *told, patience_s=10.0, now=0.0):
    """A log that has heard (rank, calls) one after the other, a second between them."""
    log = CallLog(size, patience_s, now)
    for second, (rank, calls) in enumerate(told):
        log.add(rank, calls.split(), now + second)
    return log


def test_the_same_calls_at_different_times_are_fine():
    log = heard(3, (0, "a b c d"), (2, "a"), (1, "a b"), (2, "b"), (1, "c d"), (2, "c"))
    assert log.problem(6.0) is None
    log.add(2, ["d"], 7.0)
    assert log.problem(1000.0) is None, "nobody waits for anybody"


def test_different_calls_of_a_number_are_named_with_their_ranks():
    log = heard(4, (0, "a b c"), (1, "a b c"), (3, "a c"))
    assert log.problem(3.0) == "ranks make different calls as their number 2: ranks [0, 1] b; rank 3 c"
    log.add(2, ["a", "b"], 3.0)
    assert log.problem(3.0) == "ranks make different calls as their number 2: ranks [0, 1, 2] b; rank 3 c"


def test_numbers_count_from_the_first_call_on():
    log = CallLog(2, 10.0, 0.0)
    for call in range(1000):
        for rank in range(2):
            log.add(rank, ["x" if rank and call == 700 else "y"], 0.0)
        found = log.problem(0.0)
        assert (found is None) == (call < 700)
        if found:
            assert "number 701: rank 0 y; rank 1 x" in found
            break


def test_a_rank_that_calls_nothing_while_others_go_on_is_late():
    log = heard(3, (0, "a b"), (1, "a b"), (2, "a"))  # rank 2 at second 2
    assert log.problem(11.9) is None
    text = log.problem(12.1)
    assert text.startswith(
        "rank 2 made 1 calls, and none in the last 10 s (CUTPQ_TIMEOUT); ranks [0, 1] went on to call 2, b"
    )


def test_a_rank_is_behind_from_when_others_went_on():
    log = heard(2, (0, "a"), (1, "a"))
    assert log.problem(500.0) is None, "all are at the same call for a long time"
    log.add(1, ["b"], 501.0)
    assert log.problem(510.0) is None
    assert "rank 0 made 1 calls" in log.problem(512.0)


def test_a_rank_that_makes_progress_is_not_late():
    log = heard(2, (0, "a " * 50))
    for second in range(0, 45, 9):
        log.add(1, ["a"], float(second))
        assert log.problem(second + 8.9) is None


class Mail(Channel):
    """Between threads."""

    def __init__(self, box, rank):
        self.box, self.rank = box, rank

    def send(self, calls):
        self.box.put((self.rank, calls))

    def receive(self):
        return [self.box.get() for _ in range(self.box.qsize())]

    def flush(self):
        pass


@pytest.fixture
def raised(monkeypatch):
    """What threads raised."""
    found = []
    monkeypatch.setattr(threading, "excepthook", lambda args: found.append(args.exc_value))
    monkeypatch.setattr(watch, "TICK_S", 0.01)
    return found


def watched(size, patience_s=0.3):
    box = queue.Queue()
    return [Watch(rank, size, Mail(box, rank), patience_s) for rank in range(size)]


def end(watches):
    ends = [threading.Thread(target=w.end) for w in watches]
    for thread in ends:
        thread.start()
    for thread in ends:
        thread.join(5)
        assert not thread.is_alive()


def test_watches_that_find_nothing_end_together(raised):
    watches = watched(3)
    for _ in range(100):
        for each in watches:
            each.called("a")
    end(watches)
    assert raised == []


def test_a_difference_is_raised_in_rank_0s_thread_with_all_ranks_named(raised):
    watches = watched(3)
    for rank, each in enumerate(watches):
        each.called("b" if rank == 1 else "a")
    deadline = time.monotonic() + 5
    while not raised and time.monotonic() < deadline:
        time.sleep(0.01)
    assert isinstance(raised[0], RanksDisagreeError)
    assert str(raised[0]) == "ranks make different calls as their number 1: ranks [0, 2] a; rank 1 b"
    end(watches)


def test_a_difference_waits_a_tick_for_the_other_ranks_to_tell(raised, monkeypatch):
    monkeypatch.setattr(watch, "TICK_S", 60.0)
    box = queue.Queue()
    first = Watch(0, 3, Mail(box, 0), 10.0)
    box.put((1, ["b"]))
    first._compare(first._log, ["a"])
    box.put((2, ["a"]))
    with pytest.raises(RanksDisagreeError, match=r"number 1: ranks \[0, 2\] a; rank 1 b"):
        first._compare(first._log, [])
    end([first])
    assert len(raised) == 1, "by its thread, too"


def test_a_difference_in_the_last_calls_is_still_found(raised):
    watches = watched(2)
    watches[0].called("a")
    watches[1].called("b")
    end(watches)
    assert len(raised) == 1
