"""Sums over several nodes: which rank sends how many bytes over the cable between them, and how long that takes.

A cable joins each node to all others. Its bandwidth is a node's in each direction, all adapters together, and it is
shared by all ranks of the node. Nothing here is measured; constants and their sources stand at CABLES.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from ..array import ceil_div
from ..codecs.layout import Layout
from ..weights.shard import even_shares
from .all_reduce import in_words, quickest, twoshot_sent
from .gpus import GPUS
from .links import Link, Protocol, all_gather_us, all_to_all_us, check_ranks


@dataclass(frozen=True)
class Nodes:
    """The ranks of each node, nodes in the order of their first ranks: Nodes.of((7, 7, 3)) is ((0, 1), (2,))."""

    ranks: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, node_of: Sequence[int]) -> Nodes:
        """node_of: any number for each rank, equal where ranks share a node."""
        found: dict[int, list[int]] = {}
        for rank, node in enumerate(node_of):
            found.setdefault(node, []).append(rank)
        return cls(tuple(map(tuple, found.values())))

    @property
    def count(self) -> int:
        """How many nodes there are."""
        return len(self.ranks)

    @property
    def lanes(self) -> int:
        """Ranks of each node that exchange with other nodes: as many as the smallest node has."""
        return min(map(len, self.ranks))

    def place(self, rank: int) -> tuple[int, int]:
        """(node, number of the rank in it)."""
        return next((node, ranks.index(rank)) for node, ranks in enumerate(self.ranks) if rank in ranks)


@dataclass(frozen=True)
class Cable:
    """What joins nodes.

    node_gb_s         what a node sends, and receives at the same time, in GB/s of payload
    ll_us, simple_us  latency of one message by NCCL's two protocols
    """

    name: str
    node_gb_s: float
    ll_us: float
    simple_us: float

    @property
    def protocols(self) -> tuple[Protocol, ...]:
        """NCCL's protocols with the base latencies of its rings; LL sends a flag with every four bytes of data."""
        return (
            Protocol("LL", 6.6, self.ll_us, 0.5 * self.node_gb_s),
            Protocol("Simple", 8.4, self.simple_us, self.node_gb_s),
        )


# Latencies of InfiniBand: NCCL 2.30.7, tuning.cc, hwLat of a ring over the network (LL 2.7 us, Simple 14.0 us). Sockets
# pass through two kernels: 25 us more for each message are assumed here, half of a round trip between cloud machines;
# 50 us at 1 Gbit/s. Ethernet carries 1448 bytes of payload in 1538 on the wire; InfiniBand counts as its full rate.
_ETHERNET = 1448 / 1538
CABLES = {
    cable.name: cable
    for cable in (
        Cable("ib-ndr400", 50.0, 2.7, 14.0),  # one adapter of 400 Gbit/s
        Cable("ib-ndr400x8", 400.0, 2.7, 14.0),  # eight, one for each GPU, as in a DGX H100
        Cable("eth-100g", 12.5 * _ETHERNET, 27.7, 39.0),
        Cable("eth-25g", 3.125 * _ETHERNET, 27.7, 39.0),
        Cable("tcp-1g", 0.125 * _ETHERNET, 52.7, 64.0),
    )
}


@dataclass(frozen=True)
class Network(Link):
    """Nodes of `per_node` GPUs each, with a link inside and a cable between them: a Link for all that asks for one.

    The ring of more ranks passes through every node once in a round, as NCCL's does.
    """

    inside: Link
    cable: Cable
    per_node: int

    @classmethod
    def of(cls, link: Link, cable: Cable, per_node: int) -> Network:
        """Raises ValueError for a number of GPUs below one."""
        check_ranks(per_node)
        name = f"{link.name}, {cable.name} between nodes of {per_node}"
        return cls(name, link.kind, link.bus_gb_s, link.gpu, link.ll_gb_s, link, cable, per_node)

    def nodes(self, n: int) -> Nodes:
        """Where n ranks are, if they fill node after node."""
        return Nodes.of([rank // self.per_node for rank in range(n)])

    def ring_us(self, nbytes: float, steps: int, n: int) -> float:
        """As Link.ring_us: each part of the data passes all edges, and the slowest edge passes all parts.

        Whichever takes longer counts. Some part crosses the cable once for each node in every round of n - 1 steps
        (NCCL's model has one crossing less).
        """
        check_ranks(n)
        if n <= self.per_node:
            return self.inside.ring_us(nbytes, steps, n)
        across, chunk = min(steps, steps // (n - 1) * ceil_div(n, self.per_node)), nbytes / n / 1e3
        own = {protocol.name: protocol for protocol in self.inside.protocols}
        times = []
        for over in self.cable.protocols:
            inside = own[over.name]
            path_us = (steps - across) * (inside.step_us + chunk / inside.bus_gb_s)
            path_us += across * (over.step_us + chunk / over.bus_gb_s)
            edge_us = steps * chunk / min(inside.bus_gb_s, over.bus_gb_s)
            times.append(over.base_us + max(path_us, edge_us))
        return min(times)


def lane_shares(count: int, nodes: Nodes, codec: Layout | None, shots: str) -> list[list[int]]:
    """How many elements each part of each lane of a hierarchical sum has.

    "twoshot" cuts a lane into a part for each node, whose owner adds it; "oneshot" and sums without a codec do not cut.
    """
    parts = nodes.count if shots == "twoshot" and codec else 1
    shares = codec.shares(count, nodes.lanes * parts) if codec else even_shares(count, nodes.lanes)
    return [shares[lane * parts : (lane + 1) * parts] for lane in range(nodes.lanes)]


def cable_sent(
    algo: str, count: int, itemsize: int, nodes: Nodes, rank: int, codec: Layout | None, shots: str = "twoshot"
) -> int:
    """Bytes that a rank sends to ranks of other nodes, to sum `count` elements of `itemsize` bytes.

    algo   "plain" (by shares, as every backend but nccl sums), "oneshot", "twoshot", "hierarchical"
    shots  of "hierarchical": what the owners of a share do between nodes

    With p ranks on each of N nodes, n = N p, an array of S bytes and its wire of W, a node sends in all
    plain 2 p (N-1)/N S, oneshot p^2 (N-1) W, twoshot 2 p (N-1)/N W, hierarchical (N-1) W in one shot and
    2 (N-1)/N W in two: p times less. Raises ValueError for another algo.
    """
    node, number = nodes.place(rank)
    away = [peer for other, ranks in enumerate(nodes.ranks) if other != node for peer in ranks]
    size = len(away) + len(nodes.ranks[node])
    if algo == "hierarchical":
        if number >= nodes.lanes or nodes.count == 1:
            return 0
        lane = lane_shares(count, nodes, codec, shots)[number]
        if codec is None:
            return _two_exchanges([n * itemsize for n in even_shares(lane[0], nodes.count)], node, range(nodes.count))
        if shots == "oneshot":
            return (nodes.count - 1) * codec.wire_bytes(codec.padded(lane[0]))
        return twoshot_sent(sum(lane), nodes.count, node, codec)
    if algo == "plain" or codec is None:
        return _two_exchanges([n * itemsize for n in even_shares(count, size)], rank, away)
    if algo == "oneshot":
        return len(away) * codec.wire_bytes(codec.padded(count))
    if algo == "twoshot":
        return _two_exchanges([codec.wire_bytes(share) for share in codec.shares(count, size)], rank, away)
    raise ValueError(f"algo {algo!r} is not plain, oneshot, twoshot or hierarchical")


def _two_exchanges(shares: list[int], rank: int, peers: Sequence[int]) -> int:
    """Bytes to `peers`: first the share of each, then this rank's own share to each."""
    others = [peer for peer in peers if peer != rank]
    return sum(shares[peer] for peer in others) + len(others) * shares[rank]


def between_us(shots: str, count: int, nodes: Nodes, codec: Layout, cable: Cable) -> float:
    """Time on the cable of a hierarchical sum: one exchange of whole wires, or two of parts of them."""
    wire = codec.wire_bytes(codec.padded(count))
    if shots == "oneshot":
        return messages_us(nodes.count - 1, (nodes.count - 1) * wire, nodes.lanes, cable)
    return 2 * messages_us(nodes.count - 1, (nodes.count - 1) * wire / nodes.count, nodes.lanes, cable)


def messages_us(steps: int, nbytes: float, senders: int, cable: Cable) -> float:
    """Time until each of a node's senders has sent `steps` messages one after the other, `nbytes` all together.

    The last sender's first message waits for those of all others. Each further step takes as long as these keep the
    cable busy, or as a sender's own message is on its way, whichever is longer.
    """
    if steps == 0:
        return 0.0

    def time_us(over: Protocol) -> float:
        busy_us = nbytes / steps / (over.bus_gb_s * 1e3)
        first_us = busy_us + over.step_us
        return over.base_us + first_us + (steps - 1) * max(busy_us, busy_us / senders + over.step_us)

    return min(map(time_us, cable.protocols))


def _pairs_us(nbytes: float, p: int, away: int, link: Link, cable: Cable) -> float:
    """Time until every rank has sent nbytes to the others of its node and to `away` ranks of other nodes.

    One after the other, or as long as all messages of the node take over its cable, whichever is longer.
    """
    if away == 0:
        return all_to_all_us(p * nbytes, p, link)
    inside = {protocol.name: protocol for protocol in link.protocols}

    def own_us(over: Protocol) -> float:
        near = inside[over.name]
        own_node_us = (p - 1) * (near.step_us + nbytes / near.bus_gb_s / 1e3)
        return over.base_us + own_node_us + away * (over.step_us + nbytes / over.bus_gb_s / 1e3)

    own = min(map(own_us, cable.protocols))
    return max(own, messages_us(away, p * away * nbytes, p, cable))


@lru_cache(4096)  # every sum asks, and most are of a few lengths
def choose_shots(count: int, nodes: Nodes, codec: Layout, cable: Cable) -> str:
    """Which exchange between nodes is quicker: "oneshot" or "twoshot".

    Over two nodes both send the same bytes, and one shot has a step and a rounding less.
    """
    times = {shots: between_us(shots, count, nodes, codec, cable) for shots in ("oneshot", "twoshot")}
    return min(times, key=lambda shots: times[shots])


def all_reduce_over_nodes_us(
    algo: str, count: int, itemsize: int, nodes: Nodes, codec: Layout | None, link: Link, cable: Cable
) -> float:
    """Time to sum `count` elements over nodes, GPUs joined by `link` inside and by `cable` between.

    plain         one ring through all ranks, as NCCL's
    oneshot       encode, wires to all ranks, decode and add all of them
    twoshot       encode, shares to their owners, add and encode, shares to all, decode
    hierarchical  shares inside the node, add, encode, wires between the owners (choose_shots), wires inside, decode
    """
    return transfers_us(algo, count, itemsize, nodes, codec, link, cable) + kernels_us(
        algo, count, itemsize, nodes, codec, link, cable
    )


def transfers_us(
    algo: str, count: int, itemsize: int, nodes: Nodes, codec: Layout | None, link: Link, cable: Cable
) -> float:
    """What of that the messages between ranks take."""
    p, n, S = max(map(len, nodes.ranks)), sum(map(len, nodes.ranks)), count * itemsize
    if algo == "plain":
        return Network.of(link, cable, p).ring_us(S, 2 * (n - 1), n)
    wire = codec.wire_bytes(codec.padded(count)) if codec else S
    if algo == "oneshot":
        return _pairs_us(wire, p, n - p, link, cable)
    if algo == "twoshot":
        return 2 * _pairs_us(wire / n, p, n - p, link, cable)
    inside_us = all_to_all_us(S, p, link)
    if codec is None:
        between = 2 * messages_us(nodes.count - 1, (nodes.count - 1) * S / nodes.count, nodes.lanes, cable)
        return inside_us + between + all_gather_us(S, p, link)
    shots = choose_shots(count, nodes, codec, cable)
    terms = nodes.count if shots == "oneshot" else 1
    return inside_us + between_us(shots, count, nodes, codec, cable) + all_gather_us(terms * wire, p, link)


def kernels_us(
    algo: str, count: int, itemsize: int, nodes: Nodes, codec: Layout | None, link: Link, cable: Cable
) -> float:
    """What of that a rank computes, in kernels bound by memory; the ring's own adding counts as nothing."""
    gpu, n, S = GPUS[link.gpu], sum(map(len, nodes.ranks)), count * itemsize
    p, lanes = max(map(len, nodes.ranks)), nodes.lanes

    def kernel_us(nbytes: float) -> float:
        return gpu.launch_us + gpu.read_us(nbytes)

    if algo == "plain":
        return 0.0
    if codec is None:
        return kernel_us((p + 2) * S / lanes) + kernel_us((nodes.count + 2) * S / lanes / nodes.count)
    wire = codec.wire_bytes(codec.padded(count))
    if algo == "oneshot":
        return kernel_us(S + wire) + kernel_us(n * wire + S)
    if algo == "twoshot":
        return kernel_us(S + wire) + kernel_us(wire + wire / n) + kernel_us(wire + S)
    add_and_encode_us = kernel_us((p + 2) * S / lanes) + kernel_us((2 * S + wire) / lanes)
    if choose_shots(count, nodes, codec, cable) == "oneshot":
        return add_and_encode_us + kernel_us(nodes.count * wire + S)
    return add_and_encode_us + kernel_us((wire + wire / nodes.count) / lanes) + kernel_us(wire + S)


def choose_over_nodes(
    count: int, itemsize: int, nodes: Nodes, codec: Layout | None, link: Link, cable: Cable
) -> tuple[str, str]:
    """As choose_all_reduce, for ranks on several nodes: "hierarchical" is one more algorithm to choose from.

    Without a codec it is the only other one. It rounds twice and not once, so it too has to be quicker by a tenth.
    """
    if count == 0:
        return "plain", "nothing to add"
    algos = ("plain", "oneshot", "twoshot", "hierarchical") if codec else ("plain", "hierarchical")
    times = {a: all_reduce_over_nodes_us(a, count, itemsize, nodes, codec, link, cable) for a in algos}
    where = f"{link.name}, {cable.name} between {nodes.count} nodes"
    return quickest(times), f"predicted on {where}: {in_words(times)}"
