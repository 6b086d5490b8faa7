"""Ranks that Slurm starts, as far as a stand-in for srun can show."""

import sys

from jobs import HELPERS, MPIRUN, needs_mpi, run

# What Slurm's srun sets for each task; the processes are mpirun's, for want of a Slurm.
STAND_IN_FOR_SRUN = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do case $1 in -n) tasks=$2; shift;; esac; shift; done
exec %s -n $tasks sh -c 'export SLURM_PROCID=$PMI_RANK SLURM_LOCALID=$PMI_RANK SLURM_NTASKS=$PMI_SIZE
SLURM_STEP_NUM_TASKS=$PMI_SIZE; export SLURM_STEP_NUM_TASKS; exec "$@"' sh "$@"
"""


@needs_mpi
def test_srun_with_a_pmi_that_mpi_speaks_starts_all_ranks(tmp_path):
    srun = tmp_path / "srun"
    srun.write_text(STAND_IN_FOR_SRUN % MPIRUN)
    srun.chmod(0o755)
    job = [str(srun), "--mpi=pmi2", "-n", "3", sys.executable, str(HELPERS / "mpi_worker.py"), "auto"]
    done = run([*job, "gathers_equal_shapes", "splits"], 60)
    assert done.status == 0, done.err
    assert "passed splits on 3 ranks" in done.out


@needs_mpi
def test_srun_without_a_pmi_says_which_to_ask_for():
    job = [sys.executable, "-c", "import cutpq; cutpq.init()"]
    done = run(job, 60, SLURM_STEP_NUM_TASKS="3")
    assert done.status != 0
    assert "Slurm's srun (SLURM_STEP_NUM_TASKS=3)" in done.err
    assert "or srun --mpi=pmi2 (MPICH) or --mpi=pmix (Open MPI)" in done.err
