"""A discrete simulation of collectives on two levels: ranks with a link each, and one cable for all ranks of a node.

As in the LogGP model a message takes a latency and its bytes over a bandwidth. In an exchange of pairs a rank sends one
message after the other, and receives whenever one comes; in a ring it goes on when it has sent its part and received
the next. What closed formulas leave out is simulated: messages queue for the cable of their node, in the order in which
they are ready, and in the switch for the cable of the other node, and ranks drift apart. Times are in us.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np

from cutpq.array import ceil_div
from cutpq.cost.links import Link, Protocol
from cutpq.cost.nodes import Cable


@dataclass(frozen=True)
class Machine:
    """n ranks on nodes of `per_node`, a link inside and a cable between."""

    n: int
    per_node: int
    link: Link
    cable: Cable

    def protocols(self) -> list[tuple[Protocol, Protocol]]:
        """Each protocol of the cable, and the same inside; without a cable those of the link, twice."""
        inside = {protocol.name: protocol for protocol in self.link.protocols}
        if self.n <= self.per_node:
            return [(protocol, protocol) for protocol in inside.values()]
        return [(inside[over.name], over) for over in self.cable.protocols]


def ring_us(machine: Machine, steps: int, nbytes: float) -> float:
    """Time until every rank has passed nbytes to the next one `steps` times, by the quickest protocol."""
    return min(_ring_us(machine, steps, nbytes, *protocols) for protocols in machine.protocols()) if steps else 0.0


def _ring_us(machine: Machine, steps: int, nbytes: float, inside: Protocol, over: Protocol) -> float:
    rank = np.arange(machine.n)
    crosses = rank // machine.per_node != (rank + 1) % machine.n // machine.per_node  # alone on its node's cable
    took = nbytes / 1e3 / np.where(crosses, over.bus_gb_s, inside.bus_gb_s)
    latency = np.where(crosses, over.step_us, inside.step_us)
    ready = np.full(machine.n, over.base_us)
    for _ in range(steps):
        sent = ready + took
        received = np.roll(sent + latency, 1)
        ready = np.maximum(sent, received)
    return float(received.max())


def pairs_us(machine: Machine, steps: int, stride: int, nbytes: float) -> float:
    """Time until every rank has sent nbytes to the ranks stride, 2 stride, ... steps stride further."""
    all_protocols = machine.protocols()
    return min(_pairs_us(machine, steps, stride, nbytes, *protocols) for protocols in all_protocols) if steps else 0.0


def _pairs_us(machine: Machine, steps: int, stride: int, nbytes: float, inside: Protocol, over: Protocol) -> float:
    n, p = machine.n, machine.per_node
    inside_us, crossing_us = nbytes / (inside.bus_gb_s * 1e3), nbytes / (over.bus_gb_s * 1e3)
    leaving, entering = [0.0] * ceil_div(n, p), [0.0] * ceil_div(n, p)  # when each node's cable is free
    queue = [(over.base_us, rank, 1) for rank in range(n)]  # when a rank can send its next message, and which it is
    last = 0.0
    while queue:
        ready, rank, step = heappop(queue)
        here, there = rank // p, (rank + step * stride) % n // p
        if here == there:
            arrived = ready + inside_us + inside.step_us
        else:
            start = max(ready, leaving[here])
            leaving[here] = start + crossing_us
            entering[there] = max(start, entering[there]) + crossing_us
            arrived = entering[there] + over.step_us
        last = max(last, arrived)
        if step < steps:
            heappush(queue, (arrived, rank, step + 1))
    return last
