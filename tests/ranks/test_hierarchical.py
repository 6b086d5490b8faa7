"""The sum over several nodes: right by its definition, the same bits on every rank, few bytes between nodes."""

import sys

import numpy as np
import pytest
from assertions import assert_exact
from compressed_cases import term
from hierarchical_cases import CASES
from jobs import BENCH_PATH, HELPERS, MPIRUN, needs_mpi, run

from cutpq.codecs.codec import codec
from cutpq.cost.links import LINKS
from cutpq.cost.nodes import CABLES, Nodes, cable_sent, choose_over_nodes, choose_shots, lane_shares
from cutpq.ranks import auto
from cutpq.ranks.all_reduce import all_reduce
from cutpq.ranks.nodes import groups
from cutpq.ranks.threads import run_threads

NODES = {
    "two_even": "0,0,1,1",
    "three_and_five": "0,0,0,1,1,1,1,1",
    "three_even": "0,0,1,1,2,2",
    "one_and_two_and_three": "7,3,3,5,5,5",
    "alternating": "0,1,0,1",
    "one_rank_a_node": "0,1,2",
}
PLACES = [*(("numpy", name) for name in NODES), pytest.param("cupy", "two_even", marks=pytest.mark.gpu)]
PLACES += [pytest.param("cupy", "one_and_two_and_three", marks=pytest.mark.gpu)]


def pretend(monkeypatch, name):
    monkeypatch.setenv("CUTPQ_NODES", NODES[name])
    return NODES[name].count(",") + 1


@pytest.mark.parametrize(("xp", "nodes"), PLACES, indirect=["xp"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_threads(monkeypatch, xp, case, nodes):
    run_threads(pretend(monkeypatch, nodes), case, xp=xp, timeout_s=60)


@pytest.mark.parametrize("xp", ["numpy", pytest.param("cupy", marks=pytest.mark.gpu)], indirect=True)
@pytest.mark.parametrize("shots", ["oneshot", "twoshot"])
def test_either_shots_in_several_pieces(monkeypatch, xp, shots):
    """What is added, encoded and decoded a piece at a time, as NumPy's arrays are, is that in one."""
    monkeypatch.setattr("cutpq.codecs.engine.PIECE", 64)
    for module in "cutpq.ranks.hierarchical", "hierarchical_cases":
        monkeypatch.setattr(f"{module}.choose_shots", lambda *_: shots)
    for case in "every_size_is_right_and_equal_on_all_ranks", "every_dtype_and_shape":
        run_threads(pretend(monkeypatch, "three_even"), CASES[case], xp=xp, timeout_s=60)


@needs_mpi
@pytest.mark.parametrize("nodes", ["0,0,1", "0,1,1,2"])
def test_mpi(nodes):
    command = [MPIRUN, "-n", str(nodes.count(",") + 1), sys.executable, str(HELPERS / "hierarchical_cases.py")]
    job = run(command, 120, PYTHONPATH=BENCH_PATH, CUTPQ_NODES=nodes)
    assert job.status == 0, job.err
    assert [line for line in job.out.splitlines() if not line.startswith("#")] == [f"passed {name}" for name in CASES]


@needs_mpi
@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["nccl", "host"])
def test_processes_with_gpus(backend):
    """Four ranks on two nodes; the software device counts as four GPUs where SOFTGPU_DEVICES says so."""
    command = [MPIRUN, "-n", "4", sys.executable, str(HELPERS / "hierarchical_cases.py")]
    nodes = {"PYTHONPATH": BENCH_PATH, "CUTPQ_NODES": "0,0,1,1", "CUTPQ_COMM": backend, "SOFTGPU_DEVICES": "4"}
    job = run(command, 300, **nodes)
    if "needs a GPU for each rank" in job.err:
        pytest.skip("nccl needs four GPUs")
    assert job.status == 0, job.err
    names = [*CASES, *(["captured_sums_replay"] if backend == "nccl" else [])]
    assert [line for line in job.out.splitlines() if not line.startswith("#")] == [f"passed {name}" for name in names]


@pytest.mark.parametrize("codec_or_none", [None, "mxfp4"])
def test_one_node_is_plain(codec_or_none):
    """Nothing crosses a cable, so nothing is encoded."""

    def sums(comm):
        x = term(comm.rank, 300)
        assert_exact(all_reduce(x, comm, codec_or_none, "hierarchical"), all_reduce(x, comm))
        assert comm.cable_bytes == 0

    run_threads(3, sums)


def test_one_rank_a_node_in_one_shot_is_the_flat_sum(monkeypatch):
    monkeypatch.setenv("CUTPQ_NODES", "0,1,2")
    monkeypatch.setattr("cutpq.ranks.hierarchical.choose_shots", lambda *_: "oneshot")
    run_threads(
        3,
        lambda comm: assert_exact(
            all_reduce(term(comm.rank, 300), comm, "mxfp4", "hierarchical"),
            all_reduce(term(comm.rank, 300), comm, "mxfp4", "oneshot"),
        ),
    )


def test_in_two_shots_the_own_term_is_exact(monkeypatch):
    """The wire of 1.125 says 1. 3 + 1 + 1.125 is rounded to 6, 3 + 1 + 1 to 4: the first share's owner has 1.125."""
    monkeypatch.setenv("CUTPQ_NODES", "0,1,2")
    monkeypatch.setattr("cutpq.ranks.hierarchical.choose_shots", lambda *_: "twoshot")
    terms_of_node = [1.125, 3.0, 1.0]

    def sums(comm):
        x = np.full(96, terms_of_node[comm.rank], np.float32)
        return all_reduce(x, comm, "mxfp4", "hierarchical"), all_reduce(x, comm, "mxfp4", "twoshot")

    for own_exact, flat in run_threads(3, sums):
        assert_exact(own_exact, np.float32([6] * 32 + [4] * 64))
        assert_exact(flat, np.full(96, 4, np.float32))


def test_shares_of_a_larger_node_go_to_as_many_owners_as_the_smaller_has(monkeypatch):
    def owners(comm):
        found = groups(comm)
        return found.owns_a_share, found.between.origin, found.inside.origin

    found = run_threads(pretend(monkeypatch, "three_and_five"), owners)
    assert [owns for owns, *_ in found] == [True] * 6 + [False] * 2
    assert [between for _, between, _ in found[:3]] == [(0, 3), (1, 4), (2, 5)]
    assert {inside for *_, inside in found} == {(0, 1, 2), (3, 4, 5, 6, 7)}


def test_a_node_sends_p_times_less_than_by_the_flat_sums():
    nodes, c, n = Nodes.of([0, 0, 0, 0, 1, 1, 1, 1]), codec("mxfp4"), 8 * 32 * 50
    S, W = 2 * n, c.wire_bytes(n)

    def of_node(algo, c, shots="twoshot"):
        return sum(cable_sent(algo, n, 2, nodes, rank, c, shots) for rank in range(4))

    assert of_node("plain", None) == 4 * S
    assert of_node("hierarchical", None) == S
    assert of_node("oneshot", c) == 16 * W
    assert of_node("twoshot", c) == 4 * W
    assert of_node("hierarchical", c) == of_node("hierarchical", c, "oneshot") == W
    assert [sum(lane) for lane in lane_shares(n, nodes, c, "twoshot")] == [n // 4] * 4


def test_shots_between_nodes_follow_bytes_and_latency():
    c = codec("mxfp4")
    for cable in CABLES.values():
        assert choose_shots(1 << 22, Nodes.of([0, 0, 1, 1]), c, cable) == "oneshot", "the same bytes, a step less"
        assert choose_shots(1 << 26, Nodes.of(range(8)), c, cable) == "twoshot"
        assert choose_shots(64, Nodes.of(range(8)), c, cable) == "oneshot"


@pytest.mark.parametrize(
    "link, cable, want",
    [
        ("l4-pcie", "tcp-1g", "hierarchical"),
        ("l4-pcie-2s", "eth-25g", "hierarchical"),
        ("h100-nvlink", "eth-100g", "hierarchical"),
        ("h100-nvlink", "ib-ndr400", "hierarchical"),
        ("l4-pcie-2s", "ib-ndr400x8", "twoshot"),  # here the cable is quicker than the link inside
    ],
)
def test_auto_takes_the_hierarchical_sum_where_cables_are_slow(link, cable, want):
    nodes = Nodes.of([0] * 8 + [1] * 8)
    algo, why = choose_over_nodes(8192 * 1024, 2, nodes, codec("mxfp4"), LINKS[link], CABLES[cable])
    times = dict(part.split()[:2] for part in why.split(": ")[1].split(", "))
    assert min(times, key=lambda name: float(times[name])) == algo == want


def test_auto_says_which_cable_it_decides_for(monkeypatch, capsys):
    monkeypatch.setenv("CUTPQ_NODES", "0,0,1,1")
    monkeypatch.setenv("CUTPQ_BETWEEN", "tcp-1g")

    def sums(comm):
        x = term(comm.rank, 1 << 16)
        assert_exact(all_reduce(x, comm, "mxfp4"), all_reduce(x, comm, "mxfp4", "hierarchical"))

    run_threads(4, sums)
    (line,) = capsys.readouterr().out.splitlines()
    assert "mxfp4: hierarchical (predicted on l4-pcie, tcp-1g between 2 nodes: plain " in line


@pytest.mark.parametrize(
    "nodes, link, cable, want",
    [
        ("0,0,1,1", "l4-pcie", "tcp-1g", "hierarchical"),
        ("0,0,1,1", "l4-pcie-2s", "ib-ndr400x8", "plain"),  # here the cable is quicker than the link inside
        ("0,0,0,0", "l4-pcie", "tcp-1g", None),  # one node asks nobody
    ],
)
def test_auto_without_a_codec(monkeypatch, capsys, nodes, link, cable, want):
    for name, value in (("CUTPQ_NODES", nodes), ("CUTPQ_LINK", link), ("CUTPQ_BETWEEN", cable)):
        monkeypatch.setenv(name, value)

    def sums(comm):
        x = term(comm.rank, 1 << 18)
        assert_exact(all_reduce(x, comm), all_reduce(x, comm, None, want or "plain"))
        assert_exact(all_reduce(np.arange(9), comm), np.arange(9) * comm.size)

    run_threads(4, sums)
    said = capsys.readouterr().out
    assert said.startswith(f"# cutpq: all_reduce of 524288 bytes on 4 ranks, no codec: {want} (") if want else not said


def test_cable_is_that_of_rank_0(monkeypatch):
    monkeypatch.setenv("CUTPQ_BETWEEN", "ib-ndr400")
    assert {cable.name for cable in run_threads(2, auto.cable)} == {"ib-ndr400"}
    monkeypatch.setenv("CUTPQ_BETWEEN", "string-and-cans")
    with pytest.raises(ValueError, match="CUTPQ_BETWEEN='string-and-cans' is not one of ib-ndr400, "):
        run_threads(2, auto.cable, timeout_s=10)


@pytest.mark.parametrize("text", ["0,0", "0,0,1,1", "0,x,1", "0,-1,1", "0,,1", "0,1.0,1"])
def test_nodes_that_do_not_fit_the_ranks_are_refused(monkeypatch, text):
    monkeypatch.setenv("CUTPQ_NODES", text)
    with pytest.raises(ValueError, match=f"CUTPQ_NODES='{text}' must name a node for each of 3 ranks.*'0,0,1'"):
        run_threads(3, lambda comm: comm.barrier())


@needs_mpi
def test_nodes_that_do_not_fit_are_refused_by_all_processes():
    job = run([MPIRUN, "-n", "2", sys.executable, "-c", "import cutpq; cutpq.init()"], 60, CUTPQ_NODES="0,0,1")
    assert job.status != 0
    assert "CUTPQ_NODES='0,0,1' must name a node for each of 2 ranks" in job.err


def test_other_dtypes_are_refused(monkeypatch):
    monkeypatch.setenv("CUTPQ_NODES", "0,1")
    with pytest.raises(TypeError, match="hierarchical adds float16, bfloat16 or float32, got float64"):
        run_threads(2, lambda comm: all_reduce(np.ones(32), comm, None, "hierarchical"))
