"""Costs over several nodes: what a Network adds to its link, and which sum a model takes."""

import numpy as np
import pytest

from cutpq.codecs.codec import codec
from cutpq.cost.gpus import GPUS, INT4
from cutpq.cost.links import LINKS, all_gather_us, all_reduce_us
from cutpq.cost.mlp import MlpShape, mlp_cost
from cutpq.cost.nodes import CABLES, Network, Nodes, all_reduce_over_nodes_us, messages_us
from cutpq.cost.transformer import ModelShape, Step, compressed_times_us, reduce_us, step_cost

H100, L4 = LINKS["h100-nvlink"], LINKS["l4-pcie"]
LLAMA_70B = ModelShape("llama-2-70b", 80, 8192, 64, 8, 128, 28672, 32000)


def test_inside_a_node_a_network_is_its_link():
    network = Network.of(H100, CABLES["eth-25g"], 8)
    for n in (1, 2, 8):
        assert all_reduce_us(1 << 20, n, network) == all_reduce_us(1 << 20, n, H100)
    assert all_gather_us(1 << 20, 9, network) > all_gather_us(1 << 20, 9, H100)


def test_a_ring_over_nodes_has_the_cables_latency_where_it_crosses_and_the_least_bandwidth():
    """By hand: 16 ranks on 2 nodes, 30 steps, of which 4 cross; LL and Simple as tuning.cc has them.

    A large array waits for its slowest edge; a middling one of small parts for its way through all edges.
    """
    network = Network.of(H100, CABLES["ib-ndr400"], 8)
    small = 6.6 + 26 * 0.6 + 4 * 2.7
    assert all_reduce_us(1, 16, network) == pytest.approx(small, rel=1e-4)
    assert all_reduce_us(1 << 28, 16, network) == pytest.approx(8.4 + (1 << 28) * 30 / 16 / 50e3)
    part = (1 << 22) / 16
    path = 8.4 + 26 * (3.4 + part / (18 * 20.6e3)) + 4 * (14.0 + part / 50e3)
    assert path > 8.4 + 30 * part / 50e3
    assert all_reduce_us(1 << 22, 16, network) == pytest.approx(path)


def test_ranks_fill_node_after_node():
    assert Network.of(L4, CABLES["tcp-1g"], 3).nodes(7) == Nodes(((0, 1, 2), (3, 4, 5), (6,)))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        Network.of(L4, CABLES["tcp-1g"], 0)


def test_messages_take_latency_and_the_nodes_bandwidth():
    tcp = CABLES["tcp-1g"]
    gb = 125 * 1448 / 1538
    assert messages_us(0, 1e6, 4, tcp) == 0
    assert messages_us(3, 1e6, 1, tcp) == pytest.approx(8.4 + 3 * 64.0 + 1e6 / gb)
    assert messages_us(3, 1e6, 4, tcp) == pytest.approx(8.4 + 64.0 + 1e6 / gb), "latencies pass behind other messages"
    first, next_one = 100 / gb * 2 + 52.7, 25 / gb * 2 + 52.7
    assert messages_us(9, 900, 4, tcp) == pytest.approx(6.6 + first + 8 * next_one)


def test_the_parts_of_a_hierarchical_sum_add_up():
    """On a slow cable hardly anything but its wire counts: W over two nodes, twice 3/4 W over four."""
    c, cable, count = codec("mxfp4"), CABLES["tcp-1g"], 1 << 24
    wire_us = c.wire_bytes(count) / (cable.node_gb_s * 1e3)
    for n_nodes, wires in (2, 1.0), (4, 1.5):
        nodes = Nodes.of([r // 8 for r in range(8 * n_nodes)])
        us = all_reduce_over_nodes_us("hierarchical", count, 2, nodes, c, H100, cable)
        assert wires * wire_us < us < 1.02 * wires * wire_us
    plain = all_reduce_over_nodes_us("hierarchical", count, 2, Nodes.of([0] * 8 + [1] * 8), None, H100, cable)
    assert plain == pytest.approx(16 / 4.25 * wire_us, rel=0.02)


def test_a_model_over_nodes_takes_the_hierarchical_sum_where_the_cable_is_slow():
    network, mxfp4 = Network.of(H100, CABLES["eth-100g"], 8), codec("mxfp4")
    assert list(compressed_times_us(8192, 8, network, mxfp4)) == ["oneshot", "twoshot"]
    us, algo = reduce_us(8192 * 1024, 16, network, mxfp4)
    assert algo == "hierarchical"
    assert us < reduce_us(8192 * 1024, 16, network, None)[0] / 3
    step = Step(1, 1024)
    compressed, plain = (step_cost(LLAMA_70B, step, 16, INT4, GPUS["h100"], network, c) for c in (mxfp4, None))
    assert compressed.total_us < 0.5 * plain.total_us
    assert compressed.compute_us == plain.compute_us


@pytest.mark.parametrize("cable", ["eth-100g", "ib-ndr400"])
def test_naives_gathering_crosses_the_cable_and_tp_awares_absence_spares_it(cable):
    shape, network = MlpShape("", 8192, 28672, 8192, True), Network.of(H100, CABLES[cable], 8)
    naive, aware = (mlp_cost(shape, 16, 16, s, INT4, GPUS["h100"], network) for s in ("naive", "tp-aware"))
    spared = naive.total_us - aware.total_us
    assert spared > all_gather_us(16 * 28672 * 2, 16, network)
    assert spared > naive.total_us * 0.2


def test_numbers_of_a_network_are_finite_for_any_number_of_ranks():
    network = Network.of(L4, CABLES["eth-25g"], 8)
    times = [all_reduce_us(1 << 20, n, network) for n in range(1, 65)]
    assert np.isfinite(times).all()
    assert (np.diff(times[8:]) > 0).all(), "more nodes take longer"
