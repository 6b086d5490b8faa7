"""`pytest` on all cores: its files of tests are shared among processes, copies of the one that has collected them.

A file is run by one process, in order, because its tests share fixtures. Its results are shown when its last test has
ended, as if this process had run it: what pytest prints and writes is the same as of one process but for the order.

Environment:
    CUTPQ_TEST_PROCESSES  how many; default: as many as there are cores, up to 8. With 1 pytest runs all tests itself,
                          as it does of one file, with -s or --pdb, and where there is a GPU.
"""

from __future__ import annotations

import os
import warnings
from itertools import groupby
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.sharedctypes import Synchronized
from typing import Any

import pytest

NO_MORE = 1 << 30  # as the number of the next file: stop after the test that is running


def count(session: pytest.Session) -> int:
    """How many processes are to run the tests of this session."""
    option = session.config.option
    if option.collectonly or option.usepdb or option.capture == "no" or session.testsfailed:
        return 1
    wanted = os.environ.get("CUTPQ_TEST_PROCESSES") or min(8, len(os.sched_getaffinity(0)))
    return min(int(wanted), len({item.path for item in session.items}))


def run(session: pytest.Session, processes: int) -> bool:
    """Runs all tests of the session, in so many processes; takes the place of pytest's own loop."""
    files = [list(tests) for _, tests in groupby(session.items, key=lambda item: item.path)]
    session.config._tmp_path_factory.getbasetemp()  # here, so that all share it and pytest can clear it away
    fork = get_context("fork")
    next_file = fork.Value("i", 0)
    running = {}
    for _ in range(processes):
        receiver, sender = fork.Pipe(duplex=False)
        process = fork.Process(target=_work, args=(session, files, next_file, sender))
        process.start()
        sender.close()
        running[receiver] = process
    try:
        _show_all(session, running, next_file)
    finally:
        for process in running.values():
            process.terminate()
    if session.shouldfail:
        raise session.Failed(session.shouldfail)
    if session.shouldstop:
        raise session.Interrupted(session.shouldstop)
    return True


# ---- in the process that was started


def _show_all(session: pytest.Session, running: dict[Connection, Any], next_file: Synchronized) -> None:
    """Shows what the processes say until all have ended; `running` loses those that have."""
    said: dict[Connection, list[tuple]] = {connection: [] for connection in running}
    while running:
        for connection in wait(list(running)):
            try:
                event = connection.recv()
            except EOFError:
                event = ("file ends",)
                process = running.pop(connection)
                process.join()
                begun = ["pytest", *(what[1] for what in said[connection] if what[0] == "begins")]
                if begun[1:] or process.exitcode:
                    session.shouldfail = f"{begun[-1]} ended the process of its tests, exit status {process.exitcode}"
            if event[0] == "file ends":
                _show(session, said[connection])
                said[connection] = []
            else:
                said[connection].append(event)
            if session.shouldfail or session.shouldstop:
                next_file.value = NO_MORE


def _show(session: pytest.Session, events: list[tuple]) -> None:
    """Gives pytest and its plugins the results of a file's tests."""
    config, hook = session.config, session.config.hook
    for kind, *event in events:
        match kind:
            case "begins" | "ends":
                start_or_finish = hook.pytest_runtest_logstart if kind == "begins" else hook.pytest_runtest_logfinish
                start_or_finish(nodeid=event[0], location=event[1])
            case "report":
                report = hook.pytest_report_from_serializable(config=config, data=event[0])
                hook.pytest_runtest_logreport(report=report)
            case "warning":
                message, category, *place, when, nodeid, location = event
                warning = warnings.WarningMessage(message, category, *place)
                facts = {"warning_message": warning, "when": when, "nodeid": nodeid, "location": location}
                hook.pytest_warning_recorded.call_historic(kwargs=facts)


# ---- in each of the others


def _work(session: pytest.Session, files: list[list[pytest.Item]], next_file: Synchronized, sender: Connection) -> None:
    """Runs files of tests until none is left, and sends what happens."""
    plugins = session.config.pluginmanager
    plugins.register(_Sender(session.config, sender))
    capture = plugins.getplugin("capturemanager")
    capture.stop_global_capturing()  # its files are those of the other processes too
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what pytest itself prints here
    capture.start_global_capturing()
    capture.suspend_global_capture()
    try:
        while (tests := _taken(files, next_file)) and not _stops(session, next_file):
            for test, following in zip(tests, [*tests[1:], None], strict=True):
                test.config.hook.pytest_runtest_protocol(item=test, nextitem=following)
                if _stops(session, next_file):
                    break
            sender.send(("file ends",))
    except KeyboardInterrupt:
        pass  # the process that was started has it too, and says so


def _taken(files: list[list[pytest.Item]], next_file: Synchronized) -> list[pytest.Item]:
    """The tests of the next file that no process has taken yet; none where all are taken."""
    with next_file.get_lock():
        number = next_file.value
        next_file.value += 1
    return files[number] if number < len(files) else []


def _stops(session: pytest.Session, next_file: Synchronized) -> bool:
    """Whether a test of this process, or of another one, was the last that is to run, as with -x."""
    return bool(session.shouldfail or session.shouldstop or next_file.value >= NO_MORE)


class _Sender:
    """A pytest plugin that sends what happens instead of printing it."""

    def __init__(self, config: pytest.Config, sender: Connection):
        self._config, self._send = config, lambda *event: sender.send(event)

    def pytest_runtest_logstart(self, nodeid: str, location: tuple) -> None:
        self._send("begins", nodeid, location)

    def pytest_runtest_logfinish(self, nodeid: str, location: tuple) -> None:
        self._send("ends", nodeid, location)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._send("report", data)

    def pytest_warning_recorded(
        self, warning_message: warnings.WarningMessage, when: str, nodeid: str, location: tuple | None
    ) -> None:
        if when == "runtest":  # others were recorded before the tests were shared
            w = warning_message
            self._send("warning", str(w.message), w.category, w.filename, w.lineno, when, nodeid, location)
