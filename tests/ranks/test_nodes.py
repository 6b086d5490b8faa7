"""Faults between nodes: nodes made of namespaces, jobs started by mpirun with a launcher (bench/nodes.py --run)."""

import json
import re
import sys

import pytest
from harness.namespaces import obstacle
from jobs import BENCH_PATH, HELPERS, MPIRUN, needs_mpi, run

NODES = HELPERS.parents[1] / "bench" / "nodes.py"


@pytest.fixture(scope="module", autouse=True)
def namespaces():
    """Skips where no namespaces can be made, and says why."""
    reason = obstacle()
    if reason:
        pytest.skip(reason)


def over_nodes(name, *flags, nodes="2x2", **environment):
    job = [sys.executable, str(HELPERS / "node_faults.py"), name]
    command = [sys.executable, str(NODES), "--nodes", nodes, "--rates", "none", *flags, "--run", *job]
    return run(command, 60, PYTHONPATH=BENCH_PATH, **environment)


@needs_mpi
def test_a_killed_rank_is_named_with_its_node():
    job = over_nodes("one_is_killed")
    assert job.status != 0
    assert re.search(
        r"cutpq: rank 3 \(process \d+ on node1\) was the first on its machine to end without a word", job.err
    )
    assert job.seconds < 20


@needs_mpi
@pytest.mark.slow("a cable is cut after six seconds, and the ranks wait for what was on it")
def test_a_cut_cable_ends_the_job_and_names_who_did_not_come():
    job = over_nodes("cable_is_cut", "--cut", "1:6", CUTPQ_TIMEOUT="3")
    assert "summing" in job.out
    assert job.status != 0
    assert re.search(r"rank [01] waits in .* for ranks \[[23, ]+\] of node 1, which did not come in 3 s", job.err)
    assert job.seconds < 30


@needs_mpi
def test_another_codec_on_one_node_is_refused_with_both():
    job = over_nodes("another_codec")
    assert job.status != 0
    assert re.search(
        r"rank 2 calls all_reduce of .* by mxfp8-e5m2, hierarchical, but rank 0 of .* by mxfp8-e4m3,", job.err
    )


@needs_mpi
def test_another_version_on_one_node_is_refused_with_both(tmp_path):
    """node1 finds the facts of another release first, as after an upgrade that left it out."""
    facts = tmp_path / "node1" / "cutpq-0.0.9.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: cutpq\nVersion: 0.0.9\n")
    script = tmp_path / "on_node.sh"
    script.write_text(f'PYTHONPATH="{tmp_path}/$(hostname):$PYTHONPATH" exec "$@"\n')
    job = [sys.executable, str(HELPERS / "node_faults.py"), "all_are_well"]
    command = [sys.executable, str(NODES), "--nodes", "2x2", "--rates", "none", "--run", "sh", str(script), *job]
    found = run(command, 60, PYTHONPATH=BENCH_PATH)
    assert found.status != 0
    said = r"different versions of cutpq: \S+ on ranks \[0, 1\] of node0; 0\.0\.9 on ranks \[2, 3\] of node1"
    assert re.search(said, found.err)


@needs_mpi
def test_a_slow_rank_is_waited_for():
    job = over_nodes("one_is_slow", CUTPQ_TIMEOUT="20")
    assert job.status == 0, job.err
    said = re.findall(r"rank \d of node\d is done", job.out)  # lines of two nodes may lose the line break between them
    assert sorted(said) == [f"rank {rank} of node{rank // 2} is done" for rank in range(4)]


@needs_mpi
def test_ranks_of_uneven_nodes_find_them():
    job = over_nodes("all_are_well", nodes="1+3")
    assert job.status == 0, job.err
    assert "rank 0 of node0 is done" in job.out
    assert all(f"rank {rank} of node1 is done" in job.out for rank in (1, 2, 3))


BENCH = NODES.parent


@needs_mpi
@pytest.mark.slow("whole jobs over two nodes, the sums of which other tests check")
def test_a_model_has_the_same_bits_over_two_nodes_as_on_one(tmp_path):
    """Perplexities and divergences are sums over all logits: printed in full they differ where any bit does."""
    where = {"one": tmp_path / "one.json", "two": tmp_path / "two.json"}
    flags = "--windows 1 --window 48 --codec none,mxfp4 --algo hierarchical --dtype float16 --json"
    job = [sys.executable, str(BENCH / "perplexity.py"), *flags.split()]
    one = run([MPIRUN, "-n", "4", *job, str(where["one"])], 120, CUTPQ_NODES="0,0,1,1")
    assert one.status == 0, one.err
    start = [sys.executable, str(NODES), "--nodes", "2x2", "--rates", "1gbit", "--run"]
    two = run([*start, *job, str(where["two"])], 120)
    assert two.status == 0, two.err
    results = [[json.loads(line) for line in path.read_text().splitlines()] for path in where.values()]
    figures = [[(row["codec"], row["perplexity"], row["kl"], row["check"]) for row in rows] for rows in results]
    assert figures[0] == figures[1]
    assert len({perplexity for _, perplexity, *_ in figures[0]}) == 2, "the codec is used"


@needs_mpi
@pytest.mark.slow("whole jobs over two nodes, the sums of which other tests check")
def test_the_main_job_runs_over_two_nodes():
    """Its rows want equal bits on all ranks, naive's bits for tp-aware, and every element within its bound."""
    job = [sys.executable, str(BENCH / "mlp.py"), "--smoke", "--codec", "mxfp4", "--algo", "hierarchical"]
    done = run(
        [sys.executable, str(NODES), "--nodes", "2x2", "--rates", "1gbit", "--run", *job, "--project", "none"], 120
    )
    assert done.status == 0, done.err
    assert "4 ranks" in done.out
    assert "FAIL" not in done.out
    assert done.out.count(" ok") >= 6
