"""Seconds by span: nested, repeated, of one thread, and gone when nobody records."""

import threading
import time

import pytest

from cutpq.trace import record, span


def test_spans_are_summed_by_their_path() -> None:
    with record() as seconds:
        for _ in range(2):
            with span("outer"):
                time.sleep(0.01)
                with span("inner"):
                    time.sleep(0.02)
        with span("inner"):
            pass
    assert set(seconds) == {("outer",), ("outer", "inner"), ("inner",)}
    assert seconds["outer",] >= seconds["outer", "inner"] + 0.02
    assert 0.04 <= seconds["outer", "inner"] < 1
    assert seconds["inner",] < 0.02


def test_both_ends_of_a_span_wait_for_the_device() -> None:
    calls = []
    with record(lambda: calls.append(1)), span("a"):
        assert len(calls) == 1
    assert len(calls) == 2


def test_an_error_leaves_the_span() -> None:
    with record() as seconds:
        with pytest.raises(KeyError), span("a"):
            raise KeyError
        with span("b"):
            pass
    assert set(seconds) == {("a",), ("b",)}


def test_only_this_thread_and_only_within_the_block() -> None:
    def work() -> None:
        with span("other"):
            pass

    with record() as seconds:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    work()
    assert seconds == {}
