"""A run that is ended at any moment and started again: the same bytes, or a refusal that says what has changed."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from calibration import calibration, files
from jobs import MPIRUN, needs_mpi, run
from make_model import write_model
from safetensors.numpy import load_file, save_file

from cutpq.quantization.activations import Store
from cutpq.quantization.job import QuantizationError
from cutpq.quantization.quantize import quantize
from cutpq.quantization.streams import Streams
from cutpq.ranks.threads import run_threads

# Outside of CI: CUTPQ_TEST_KILLS=20 python -m pytest tests/quantization/test_restart.py
KILLS = int(os.environ.get("CUTPQ_TEST_KILLS", "3"))


class EndedError(Exception):
    """Ends a run from its progress callback."""


def ended_after(modules):
    def progress(name, loss, done, total):
        if done == modules:
            raise EndedError

    return progress


def start(tmp_path, **settings):
    return quantize(tmp_path / "src", tmp_path / "dst", calibration(), group_size=32, **settings)


def command(tmp_path, dst):
    return [sys.executable, "-m", "cutpq", "quantize", str(tmp_path / "src"), str(tmp_path / dst),
            "--tokens", str(tmp_path / "tokens.npy"), "--group-size", "32"]  # fmt: skip


def test_killed_at_any_moment(tmp_path):
    seed = int(os.environ.get("CUTPQ_TEST_SEED", time.time_ns() % 10**6))
    print(f"CUTPQ_TEST_SEED={seed}")
    rng = np.random.default_rng(seed)
    write_model(tmp_path / "src", num_hidden_layers=6, hidden_size=96)
    np.save(tmp_path / "tokens.npy", calibration(sequences=32))
    whole = run(command(tmp_path, "whole"), 300)
    assert whole.status == 0, whole.err
    kills = 0
    while kills < KILLS:
        process = subprocess.Popen(command(tmp_path, "dst"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.3, 1) * whole.seconds)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        if (tmp_path / "dst").exists():  # done in spite of the kills: once more from the beginning
            assert files(tmp_path / "dst") == files(tmp_path / "whole")
            shutil.rmtree(tmp_path / "dst")
    last = run(command(tmp_path, "dst"), 300)
    assert last.status == 0, last.err
    assert files(tmp_path / "dst") == files(tmp_path / "whole")


@pytest.mark.parametrize("modules", [3, 7, 8, 20])
def test_goes_on_after_the_last_layer_that_is_done(tmp_path, modules):
    write_model(tmp_path / "src", num_hidden_layers=3)
    with pytest.raises(EndedError):
        start(tmp_path, progress=ended_after(modules))
    assert not (tmp_path / "dst").exists()
    done = start(tmp_path)
    assert done.resumed == (modules - 1) // 7
    assert len(done.losses) == 21
    quantize(tmp_path / "src", tmp_path / "whole", calibration(), group_size=32)
    assert files(tmp_path / "dst") == files(tmp_path / "whole")


def test_goes_on_with_another_number_of_ranks(tmp_path):
    write_model(tmp_path / "src")
    with pytest.raises(EndedError):
        start(tmp_path, progress=ended_after(9))
    resumed = run_threads(4, lambda comm: start(tmp_path, comm=comm).resumed)
    assert resumed == [1] * 4
    quantize(tmp_path / "src", tmp_path / "whole", calibration(), group_size=32)
    assert files(tmp_path / "dst") == files(tmp_path / "whole")


def test_ended_between_proof_and_name(tmp_path, monkeypatch):
    write_model(tmp_path / "src")
    monkeypatch.setattr("pathlib.Path.rmdir", lambda self: (_ for _ in ()).throw(EndedError()))
    (tmp_path / "dst").mkdir()
    with pytest.raises(EndedError):
        start(tmp_path)
    monkeypatch.undo()
    start(tmp_path)
    quantize(tmp_path / "src", tmp_path / "whole", calibration(), group_size=32)
    assert files(tmp_path / "dst") == files(tmp_path / "whole")


def test_another_setting_is_refused_with_both_values(tmp_path):
    write_model(tmp_path / "src")
    with pytest.raises(EndedError):
        start(tmp_path, progress=ended_after(9))
    with pytest.raises(QuantizationError, match=r"was begun with another setting bits: 4 then, 8 now; give the old"):
        start(tmp_path, bits=8)
    with pytest.raises(QuantizationError, match=r"setting asymmetric_target: True then, False now"):
        start(tmp_path, asymmetric_target=False)
    with pytest.raises(QuantizationError, match=r"another calibration tokens: \(16, 24\) sha256 .* then, "):
        quantize(tmp_path / "src", tmp_path / "dst", calibration(seed=1), group_size=32)


def test_another_source_is_refused(tmp_path):
    write_model(tmp_path / "src")
    with pytest.raises(EndedError):
        start(tmp_path, progress=ended_after(9))
    tensors = load_file(tmp_path / "src" / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, tmp_path / "src" / "model.safetensors")
    with pytest.raises(QuantizationError, match=r"source file model.safetensors: .* bytes, modified at .* then"):
        start(tmp_path)


def test_two_runs_at_once_are_refused(tmp_path):
    write_model(tmp_path / "src")

    def meanwhile(name, loss, done, total):
        with pytest.raises(QuantizationError, match="another run is writing there"):
            start(tmp_path)

    start(tmp_path, progress=meanwhile)


@needs_mpi
def test_processes_write_the_same_bytes(tmp_path):
    write_model(tmp_path / "src")
    np.save(tmp_path / "tokens.npy", calibration())
    job = run([MPIRUN, "-n", "4", *command(tmp_path, "dst")], 300, CUTPQ_COMM="mpi")
    assert job.status == 0, job.err
    quantize(tmp_path / "src", tmp_path / "one", calibration(), group_size=32)
    assert files(tmp_path / "dst") == files(tmp_path / "one")


@needs_mpi
@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.full((4, 8), 1000), "calibration token 1000 of sequence 0 at 0 is out of range"),
        (np.zeros(3, np.int64), "3 tokens cannot be cut into windows of --window 512"),
        (None, "No such file or directory"),
    ],
    ids=["out_of_range", "too_few", "no_file"],
)
def test_processes_refuse_together_and_one_says_why(tmp_path, tokens, message):
    write_model(tmp_path / "src")
    if tokens is not None:
        np.save(tmp_path / "tokens.npy", tokens)
    job = run([MPIRUN, "-n", "2", *command(tmp_path, "dst")], 120, CUTPQ_COMM="mpi")
    assert job.status == 1, job.err
    [line] = job.err.splitlines()
    assert line.startswith("cutpq: error: ")
    assert message in line


@pytest.mark.parametrize(("kind", "method"), [(Streams, "save"), (Store, "new")])
def test_a_disk_that_fails_one_rank_ends_all(tmp_path, monkeypatch, kind, method):
    write_model(tmp_path / "src")
    whole, thread = getattr(kind, method), threading.local()

    def fails_on_rank_1(self, *arguments):
        if thread.rank == 1:
            raise OSError(28, "No space left on device", "rows-1")
        return whole(self, *arguments)

    monkeypatch.setattr(kind, method, fails_on_rank_1)

    def attempt(comm):
        thread.rank = comm.rank
        with pytest.raises(OSError, match="No space left on device"):
            start(tmp_path, comm=comm)
        return True

    assert run_threads(2, attempt) == [True, True]
