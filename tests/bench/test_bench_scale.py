"""The simulation of messages, by hand for small machines, and that the closed formulas agree with it."""

import json

import pytest
import scale
from predict.messages import Machine, pairs_us, ring_us

from cutpq.cost.links import LINKS, Link, Protocol
from cutpq.cost.nodes import CABLES, Cable, transfers_us


class OneProtocol(Link):
    """1 us and 1 byte in a us inside a node."""

    @property
    def protocols(self):
        return (Protocol("LL", 100.0, 1.0, 0.001),)


class SlowCable(Cable):
    """10 us and 1 byte in two us between nodes; both start at 100 us."""

    @property
    def protocols(self):
        return (Protocol("LL", 100.0, 10.0, 0.0005),)


def machine(n, per_node):
    return Machine(n, per_node, OneProtocol("", "", 0.001, "", 0.001), SlowCable("", 0.0005, 10.0, 10.0))


def test_a_ring_inside_a_node_takes_its_steps_one_after_the_other():
    assert ring_us(machine(4, 4), 3, 5.0) == pytest.approx(100 + 3 * (5 + 1))


def test_a_ring_over_nodes_waits_for_the_slow_edge():
    """Two nodes of two: a part takes 6 us inside and 20 between; in three steps some part crosses twice."""
    assert ring_us(machine(4, 2), 1, 5.0) == pytest.approx(100 + 10 + 10)
    assert ring_us(machine(4, 2), 3, 5.0) == pytest.approx(100 + 20 + 6 + 20)
    many = ring_us(machine(4, 2), 400, 5.0)
    assert many == pytest.approx(100 + 400 * max((20 + 6) / 2, 10), rel=0.01), (
        "the way through all edges, or the slowest"
    )


def test_pairs_inside_a_node_do_not_meet():
    assert pairs_us(machine(4, 4), 3, 1, 5.0) == pytest.approx(100 + 3 * 6)


def test_messages_of_a_node_queue_for_its_cable():
    """Each of two ranks sends 5 bytes to its partner on the other node: the second waits for the first's 10 us."""
    assert pairs_us(machine(4, 2), 1, 2, 5.0) == pytest.approx(100 + 10 + 10 + 10)
    assert pairs_us(machine(2, 1), 1, 1, 5.0) == pytest.approx(100 + 10 + 10)


def test_the_quickest_protocol_counts():
    link, cable = LINKS["h100-nvlink"], CABLES["ib-ndr400"]
    small, large = (ring_us(Machine(16, 8, link, cable), 30, nbytes) for nbytes in (8.0, 8e6))
    assert small < 6.6 + 30 * 2.8
    assert large == pytest.approx(8.4 + 30 * 8e6 / 50e3, rel=0.05)


@pytest.mark.parametrize(
    "flags",
    [
        "--most 128",
        "--link l4-pcie --between eth-25g --tokens 16 --most 64",
        "--link l4-pcie-2s --between tcp-1g --tokens 1 --most 64",
        "--link a100-nvlink --between ib-ndr400x8 --tokens 128 --most 64",
    ],
)
def test_formula_and_simulation_agree(flags, tmp_path, capsys):
    file = tmp_path / "rows.json"
    assert scale.main([*flags.split(), "--json", str(file)]) == 0
    assert "PROJECTED, not measured" in capsys.readouterr().out
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    sums = [row for row in rows if "algo" in row]
    assert {row["algo"] for row in sums} == set(scale.ALGOS)
    assert all(abs(row["diff"]) <= 0.1 and row["check"] == "ok" for row in sums)
    slow = [row for row in sums if row["ranks"] > 8]
    assert all(row["algo"] == "hierarchical" or row["ranks"] == 16 for row in slow if row["best"])


def test_a_formula_that_is_wrong_fails(monkeypatch):
    monkeypatch.setattr(scale, "transfers_us", lambda *what: 1.2 * transfers_us(*what))
    assert scale.main(["--most", "16"]) == 1


def test_tensor_parallelism_stops_where_a_model_cannot_be_shared(capsys):
    assert scale.main(["--most", "256"]) == 0
    lines = {line.split()[0]: line.split() for line in capsys.readouterr().out.split("sum by")[1].splitlines()[1:]}
    assert lines["64"].count("-") == 0
    assert lines["128"].count("-") == 3
    assert lines["256"].count("-") == 6
