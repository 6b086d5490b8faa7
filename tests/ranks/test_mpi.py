"""Ranks as processes: the collectives under mpirun, how a job starts, and how it ends."""

import re
import sys

import mpi_worker
import pytest
from jobs import mpirun, needs_mpi, run

from cutpq.ops.engine.threads import cores
from cutpq.ranks import discovery as launch

EIGHT = pytest.param(8, marks=pytest.mark.slow("eight processes, whatever cores there are"))


@needs_mpi
@pytest.mark.parametrize("ranks", [2, 3, EIGHT])
def test_collectives(ranks):
    names = [*mpi_worker.CASES, *mpi_worker.TWO_SHOT_CASES]
    job = mpirun(ranks, *names)
    assert job.status == 0, job.err
    assert job.out.splitlines() == [
        f"# cutpq: {ranks} ranks, backend mpi: asked for; {max(1, cores() // ranks)} of {cores()} cores a rank",
        *[f"passed {name} on {ranks} ranks" for name in names],
    ]


@needs_mpi
def test_auto_chooses_and_says_so_once():
    job = mpirun(3, "broadcasts_objects", backend="auto")
    assert job.status == 0, job.err
    assert re.fullmatch(r"# cutpq: 3 ranks, backend (mpi|nccl|host): \w.*\npassed .* on 3 ranks\n", job.out)


@needs_mpi
@pytest.mark.parametrize("ending", ["one_rank_raises", "one_thread_raises"])
def test_error_on_one_rank_ends_the_job_with_its_traceback(ending):
    job = mpirun(3, ending, timeout_s=15)
    assert job.status != 0
    assert "[rank 1] Traceback (most recent call last):" in job.err
    assert "[rank 1] ValueError: planted" in job.err
    assert "passed" not in job.out


COUNTS_DIFFER = {
    "one_rank_sends_less": "[rank 0] ValueError: rank 0 counts on 8 bytes from rank 1, which sends 0: shapes, dtypes",
    "one_rank_sends_more": "[rank 0] ValueError: rank 0 counts on [8, 8] bytes from the ranks, and MPI says: ",
}


@needs_mpi
@pytest.mark.parametrize(("ending", "text"), COUNTS_DIFFER.items(), ids=COUNTS_DIFFER)
def test_counts_that_differ_between_ranks_are_an_error(ending, text):
    job = mpirun(2, ending, timeout_s=15)
    assert job.status != 0
    assert text in job.err


WAIT = r"\[rank [02]\] .*RanksDisagreeError: rank [02] waits in {} for ranks \[1\], which did not come in 2 s"
DIFFER = r"\[rank 0\] .*RanksDisagreeError: ranks make different calls as their number "
# Rank 0 tells of what it has heard within a quarter of a second after calls that differ: on a busy machine not of all.
SOME = r"(?:ranks \[0, 2\]|rank [02])"
SUM = r"all_reduce of float16 \(64,\) by mxfp4, twoshot"
CALLS_DIFFER = {
    "one_rank_skips_a_sum": DIFFER + rf"3: {SOME} {SUM}; rank 1 barrier",
    "one_rank_skips_a_barrier": WAIT.format("a barrier") + r".* It is in its call 2, barrier",
    "one_rank_skips_a_bcast": r"\[rank 1\] .*RanksDisagreeError: rank 1 is in its call 1, all_reduce of float16 \(64,\)"
    r" by mxfp4, oneshot, but what rank 0 sends is of its call 1, bcast from rank 0",
    "one_rank_gathers_instead_of_a_bcast": DIFFER + r"1: rank 0 all_gather of float64 \(4,\); rank.* bcast",
    "sum_of_another_shape": r"\[rank 1\] ValueError: rank 1 calls all_reduce of float16 \(2, 33\) by mxfp4.*rank 0 of",
    "sum_by_another_codec": r"\[rank 1\] ValueError: rank 1 calls all_reduce of .* by int4, .* rank 0 of .* by mxfp4",
    "gpus_where_one_rank_skips_a_sum": DIFFER + rf"1: {SOME} all_reduce of float16 \(8,\); rank 1 .*\(9,\)",
    "gpus_where_one_rank_comes_late": r"rank 1 made 2 calls, and none in the last 2 s .*; ranks \[0, 2\] went on to "
    r"call 3, all_reduce of float16 \(8,\): a call was skipped, or the rank is gone",
    "gpus_where_one_rank_returns": r"rank 0 made 1 calls, .*; ranks \[1, 2\] went on to call 2, all_reduce of float16",
    "gpus_of_another_codec": DIFFER + r"1: rank.* all_reduce by e2m1; rank 2 all_reduce by int4",
}


@needs_mpi
@pytest.mark.parametrize(("ending", "pattern"), CALLS_DIFFER.items(), ids=CALLS_DIFFER)
def test_rank_that_calls_something_else_is_named_in_time(ending, pattern):
    job = mpirun(3, ending, timeout_s=25, CUTPQ_TIMEOUT="2")
    assert job.status != 0
    assert re.search(pattern, job.err), job.err
    assert "passed" not in job.out


@needs_mpi
def test_gpus_that_agree_end_in_peace():
    job = mpirun(3, "gpus_that_agree", timeout_s=25, CUTPQ_TIMEOUT="2")
    assert job.status == 0, job.err
    assert job.err == ""


@needs_mpi
def test_verbose_says_which_process_is_which_rank():
    job = mpirun(3, "broadcasts_objects", CUTPQ_VERBOSE="1")
    assert job.status == 0, job.err
    said = [re.fullmatch(r"# cutpq: rank (\d) is process (\d+) on \S+", line) for line in job.out.splitlines()[:3]]
    assert [found[1] for found in said] == ["0", "1", "2"]
    assert len({found[2] for found in said}) == 3


@needs_mpi
@pytest.mark.parametrize("death", mpi_worker.DEATHS)
def test_rank_that_dies_without_a_word_is_named(death):
    job = mpirun(3, death, timeout_s=25)
    assert job.status != 0
    assert "passed" not in job.out
    assert re.findall(r"cutpq: rank (\d+) \(process \d+ on \S+\) was the first", job.err + job.out) == ["1"]


@needs_mpi
@pytest.mark.parametrize("ending", ["one_rank_raises", "all_ranks_exit", "all_ranks_finalize", "broadcasts_objects"])
def test_ranks_that_leave_with_a_word_are_not_named(ending):
    assert "was the first" not in mpirun(3, ending, timeout_s=25).err


@needs_mpi
def test_timeout_that_is_no_number_is_refused():
    job = mpirun(2, "broadcasts_objects", timeout_s=25, CUTPQ_TIMEOUT="soon")
    assert job.status != 0
    assert "CUTPQ_TIMEOUT='soon' is no number of seconds" in job.err


@needs_mpi
def test_interrupt_on_one_rank_ends_the_job():
    job = mpirun(3, "one_rank_is_interrupted", timeout_s=15)
    assert job.status != 0
    assert "[rank 1] KeyboardInterrupt" in job.err


@needs_mpi
def test_exit_of_one_rank_ends_the_job():
    job = mpirun(3, "one_rank_exits", timeout_s=15)
    assert job.status != 0
    assert "planted" in job.err
    assert "[rank 1] left with exit status 1 while other ranks still run" in job.err


@needs_mpi
def test_exit_of_all_ranks_is_an_ordinary_end():
    job = mpirun(3, "all_ranks_exit", timeout_s=15)
    assert job.status == 3
    assert "ending the job" not in job.err
    assert sorted(re.findall(r"rank \d is done", job.out)) == [f"rank {r} is done" for r in range(3)]


@needs_mpi
def test_ranks_may_end_at_different_times():
    job = mpirun(3, "one_rank_works_longer", timeout_s=15)
    assert job.status == 0, job.err
    assert "rank 0 is done" in job.out
    assert job.seconds > 3, "rank 0 worked longer than a failed rank would have waited for it"


@needs_mpi
def test_a_slow_rank_finishes_its_work_before_the_others_end():
    job = mpirun(3, "slow_rank_drains_before_others_end", timeout_s=15)
    assert job.status == 0, job.err
    assert re.findall(r"drained|all have left", job.out) == ["drained", *["all have left"] * 3]


@needs_mpi
@pytest.mark.skipif(launch.find_gpu(0).device is not None, reason="this machine has a GPU")
@pytest.mark.parametrize("backend", ["nccl", "ipc", "host"])
def test_gpu_backend_without_gpu_is_refused_on_all_ranks(backend):
    job = mpirun(2, "broadcasts_objects", backend=backend, timeout_s=15)
    assert job.status != 0
    assert re.search(rf"StartError: backend {backend} cannot run: on rank 0 \(.+\), CuPy", job.err)
    assert "cutpq:" not in job.out


A_GPU_EACH = {"SOFTGPU_DEVICES": "3"}
ONE_GPU = {"SOFTGPU_DEVICES": "1", "CUDA_VISIBLE_DEVICES": "0"}


def skip_without(gpus):
    """The software device has as many GPUs as SOFTGPU_DEVICES says; of real ones there may be too few."""
    there = run([sys.executable, "-c", "import cupy; print(cupy.cuda.runtime.getDeviceCount())"], **gpus)
    if gpus == A_GPU_EACH and int(there.out) < 3:
        pytest.skip(f"three ranks with a GPU each, and {int(there.out)} GPUs")


@needs_mpi
@pytest.mark.gpu
@pytest.mark.parametrize("gpus", [A_GPU_EACH, ONE_GPU], ids=["a_gpu_each", "one_gpu"])
@pytest.mark.parametrize("backend", ["nccl", "ipc", "host"])
def test_every_case_on_a_gpu_backend(backend, gpus):
    skip_without(gpus)
    if (backend, gpus) == ("nccl", ONE_GPU):
        job = mpirun(3, "broadcasts_objects", backend=backend, **gpus)
        assert "backend nccl needs a GPU for each rank: 3 ranks have 1" in job.err
        return
    # NCCL adds in its own order; peers add small sums in one shot.
    more = {"nccl": [], "ipc": ["rounds_once_in_rank_order"], "host": [*mpi_worker.TWO_SHOT_CASES]}[backend]
    cases = [*mpi_worker.CASES, *more]
    job = mpirun(3, *cases, backend=backend, timeout_s=240, **gpus)
    assert job.status == 0, job.err
    assert job.out.splitlines()[1:] == [f"passed {name} on 3 ranks" for name in cases]


@needs_mpi
@pytest.mark.gpu
@pytest.mark.parametrize("gpus", [A_GPU_EACH, ONE_GPU], ids=["a_gpu_each", "one_gpu"])
def test_a_rank_may_leave_while_others_read_its_memory(gpus):
    skip_without(gpus)
    job = mpirun(3, "ranks_leave_after_a_sum", backend="ipc", timeout_s=120, SOFTGPU_ASYNC="1", **gpus)
    assert job.status == 0, job.err
    # mpirun may put the lines of two ranks on one.
    assert sorted(re.findall(r"rank \d has the sum", job.out)) == ["rank 1 has the sum", "rank 2 has the sum"]
    assert "freed" not in job.err, job.err


@needs_mpi
@pytest.mark.gpu
def test_a_captured_sum_keeps_its_memory():
    skip_without(A_GPU_EACH)
    job = mpirun(3, "graph_replays_after_larger_sums", backend="ipc", timeout_s=120, **A_GPU_EACH)
    assert job.status == 0, job.err


@needs_mpi
@pytest.mark.parametrize("variable", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_another_launchers_ranks_are_explained(variable):
    job = run([sys.executable, "-c", "import cutpq.ranks.init; cutpq.ranks.init.init()"], **{variable: "8"})
    assert job.status != 0
    assert "StartError: launched with 8 ranks by" in job.err
    assert f"{variable}=8" in job.err
    assert "mpi4py is linked with another MPI" in job.err
    assert "mpirun" in job.err
    assert "CUTPQ_COMM=self" in job.err


WITHOUT_MPI4PY = "import sys; sys.modules['mpi4py'] = None; import cutpq.ranks.init; cutpq.ranks.init.init({!r})"


def test_launched_ranks_without_mpi4py_are_told_to_install_it():
    job = run([sys.executable, "-c", WITHOUT_MPI4PY.format("auto")], PMI_SIZE="8")
    assert job.status != 0
    assert "started 8 ranks, but they cannot find each other" in job.err
    assert "pip install 'cutpq[mpi]'" in job.err


def test_one_process_needs_no_mpi4py():
    job = run([sys.executable, "-c", WITHOUT_MPI4PY.format("auto")])
    assert job.status == 0, job.err
    assert job.out == "# cutpq: 1 rank, backend self: one process, and no MPI installed\n"


def test_asking_for_mpi_without_mpi4py_is_an_error():
    job = run([sys.executable, "-c", WITHOUT_MPI4PY.format("mpi")])
    assert "StartError: this backend needs MPI" in job.err
