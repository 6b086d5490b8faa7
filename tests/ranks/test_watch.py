"""What rank 0 makes of the calls that it hears of. By MPI, with GPUs that never come to an end: test_mpi.py."""

import queue
import threading
import time

import pytest

from cutpq.ranks.failures import watch
from cutpq.ranks.failures.watch import Post, Roll, Watch
from cutpq.ranks.init import RanksDisagreeError


def heard(size, *told, patience_s=10.0, now=0.0):
    """A roll that has heard (rank, calls) one after the other, a second between them."""
    roll = Roll(size, patience_s, now)
    for second, (rank, calls) in enumerate(told):
        roll.hear(rank, calls.split(), now + second)
    return roll


def test_the_same_calls_at_different_times_are_fine():
    roll = heard(3, (0, "a b c d"), (2, "a"), (1, "a b"), (2, "b"), (1, "c d"), (2, "c"))
    assert roll.complaint(6.0) is None
    roll.hear(2, ["d"], 7.0)
    assert roll.complaint(1000.0) is None, "nobody waits for anybody"


def test_different_calls_of_a_number_are_named_with_their_ranks():
    roll = heard(4, (0, "a b c"), (1, "a b c"), (3, "a c"))
    assert roll.complaint(3.0) == "ranks make different calls as their number 2: ranks [0, 1] b; rank 3 c"
    roll.hear(2, ["a", "b"], 3.0)
    assert roll.complaint(3.0) == "ranks make different calls as their number 2: ranks [0, 1, 2] b; rank 3 c"


def test_numbers_count_from_the_first_call_on():
    roll = Roll(2, 10.0, 0.0)
    for call in range(1000):
        for rank in range(2):
            roll.hear(rank, ["x" if rank and call == 700 else "y"], 0.0)
        found = roll.complaint(0.0)
        assert (found is None) == (call < 700)
        if found:
            assert "number 701: rank 0 y; rank 1 x" in found
            break


def test_a_rank_that_calls_nothing_while_others_go_on_is_late():
    roll = heard(3, (0, "a b"), (1, "a b"), (2, "a"))  # rank 2 at second 2
    assert roll.complaint(11.9) is None
    text = roll.complaint(12.1)
    assert text.startswith(
        "rank 2 made 1 calls, and none in the last 10 s (CUTPQ_TIMEOUT); ranks [0, 1] went on to call 2, b"
    )


def test_a_rank_is_behind_from_when_others_went_on():
    roll = heard(2, (0, "a"), (1, "a"))
    assert roll.complaint(500.0) is None, "all are at the same call for a long time"
    roll.hear(1, ["b"], 501.0)
    assert roll.complaint(510.0) is None
    assert "rank 0 made 1 calls" in roll.complaint(512.0)


def test_a_rank_that_makes_progress_is_not_late():
    roll = heard(2, (0, "a " * 50))
    for second in range(0, 45, 9):
        roll.hear(1, ["a"], float(second))
        assert roll.complaint(second + 8.9) is None


class Mail(Post):
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
    first._compare(first._roll, ["a"])
    box.put((2, ["a"]))
    with pytest.raises(RanksDisagreeError, match=r"number 1: ranks \[0, 2\] a; rank 1 b"):
        first._compare(first._roll, [])
    end([first])
    assert len(raised) == 1, "by its thread, too"


def test_a_difference_in_the_last_calls_is_still_found(raised):
    watches = watched(2)
    watches[0].called("a")
    watches[1].called("b")
    end(watches)
    assert len(raised) == 1
