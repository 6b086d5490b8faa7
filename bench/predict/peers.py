"""What a sum by peers (all_reduce_oneshot, all_reduce_twoshot) should take between GPUs on NVLink. All predicted.

A step takes the longest of
link    what passes between it and its peers, at the bandwidth that NCCL's tuning model gives the link
memory  what the rank reads and writes in its own memory, at the bandwidth of a copy
issue   the instructions of the step in the kernel's machine code (machine_code.py), by a warp of the block with most
        tiles: in as many slots of a scheduler as one warp can fill, or in its part of those that all warps fill
The one-shot sum takes its steps one after the other, with a meeting between them. Of the two-shot sum the two halves of
the grid alternate: `_twoshot` follows both in time. A step begins with one latency, of the link where it reads from
peers. What is in flight (4 KiB and more a block and tile) is several times what a link needs.
"""

from __future__ import annotations

from dataclasses import dataclass

from cutpq.array import ceil_div
from cutpq.codecs.codec import Codec
from cutpq.cost.links import LINKS
from cutpq.kernels.config import FLOAT16
from cutpq.ranks.slab import PeerConfig, peer_config
from predict import machine_code
from predict.gemm import Machine

# A load from a peer's memory, and a meeting: a fence and a flag to every peer, then the flags of all. Assumed. With
# these the published times below come out 3 to 11 % low for the one-shot kernel (`reading_in_place_us`), but 25 to 33 %
# for the two-shot kernel.
LINK_LATENCY_US = 1.0
MEETING_US = 1.5

# vLLM's sums of float16 by peers, 6 ranks, bytes and us (vllm-project/vllm#24111; GPU not named, Hopper or newer).
PUBLISHED_ONESHOT = ((512 << 10, 13.0), (1 << 20, 21.0), (2 << 20, 38.0), (4 << 20, 70.0))
PUBLISHED_TWOSHOT = ((512 << 10, 15.0), (1 << 20, 17.0), (2 << 20, 26.0), (4 << 20, 37.0))

LINK_OF = {"h200": LINKS["h200-nvlink"], "h100": LINKS["h100-nvlink"], "a100": LINKS["a100-nvlink"]}


@dataclass(frozen=True)
class Step:
    """Bytes over the link, bytes of the own memory, and instructions of the warp that has most."""

    link_bytes: float
    memory_bytes: float
    instructions: float = 0.0

    def longest(self, machine: Machine, blocks: int) -> tuple[str, float]:
        """What takes longest if each were alone, and its time in us, on so many blocks."""
        warps_of_scheduler = 2 * ceil_div(blocks, machine.device.sms)
        fraction = min(machine.warp_fraction, machine.issue_fraction / warps_of_scheduler)
        times = {
            "link": self.link_bytes / (LINK_OF[machine.name].bus_gb_s * 1e3),
            "memory": self.memory_bytes / (machine.copy_gb_s * 1e3),
            "issue": self.instructions / (machine.clock_ghz * 1e3 * fraction),
        }
        what = max(times, key=lambda part: times[part])
        return what, times[what]


@dataclass(frozen=True)
class PeerPrediction:
    """time_us; link_bytes that a rank receives from its peers; of_link: these over the time and the link's bandwidth.

    parts  us of link, memory and issue where each is the longest of its step, and of what begins, waits and meets
    """

    time_us: float
    link_bytes: float
    of_link: float
    parts: dict[str, float]

    @property
    def bound(self) -> str:
        """What takes most of the time."""
        return max(self.parts, key=lambda part: self.parts[part])


def predict(
    nbytes: int, ranks: int, algo: str, codec: Codec | None, machine: Machine, far: bool = False
) -> PeerPrediction:
    """The sum of `nbytes` of float16 on each of `ranks` GPUs, by algo "oneshot" or "twoshot".

    far  the ranks' scales are too far apart for sums in half2 (tile/packed_sum.cuh)
    """
    wire = nbytes if codec is None else nbytes * codec.bits / 16
    link, follow = LINK_OF[machine.name], _oneshot if algo == "oneshot" else _twoshot
    time, received, busy = follow(nbytes, wire, ranks, _Counts(algo, codec, ranks, machine, far), machine)
    parts = dict.fromkeys(("link", "memory", "issue"), 0.0)
    for what, us in busy:
        parts[what] += us
    parts["start and meetings"] = time - sum(parts.values())
    return PeerPrediction(time, received, received / (time * link.bus_gb_s * 1e3), parts)


def reading_in_place_us(nbytes: int, ranks: int, algo: str, machine: Machine) -> float:
    """Time of plain sums as vLLM's kernels take them: peers read x where it lies, with a meeting before and after.

    Two-shot has one meeting more, between its steps, each of which reads the shares of all peers.
    """
    steps = 1 if algo == "oneshot" else 2
    received = (ranks - 1) * nbytes / (1 if algo == "oneshot" else ranks)
    reading = LINK_LATENCY_US + received / (LINK_OF[machine.name].bus_gb_s * 1e3)
    return machine.launch_us + steps * reading + (steps + 1) * MEETING_US


class _Counts:
    """Instructions of a warp in the steps of a kernel."""

    def __init__(self, algo: str, codec: Codec | None, ranks: int, machine: Machine, far: bool):
        self.algo, self.ranks, self.arch, self.sms, self.far = algo, ranks, machine.arch, machine.device.sms, far
        self.facts = (codec.element, codec.block, codec.scale, codec.rule) if codec else None

    def config(self, step: int = 0) -> PeerConfig:
        return peer_config(self.facts, FLOAT16, self.ranks, step, self.sms)

    def tiles(self, n: int) -> int:
        """Tiles that n numbers fill: each thread of a block has eight numbers of a tile."""
        return ceil_div(n, 8 * self.config().THREADS)

    def of_step(self, step: int, tiles: int, at_a_time: int, teams: int = 1) -> float:
        """For a block's `tiles`, dealt to its teams, of which a team takes so many in one round of its loop."""
        code = machine_code.tile_code(f"all_reduce_{self.algo}", self.config(step), self.arch, self.far and step == 2)
        return ceil_div(tiles, teams) * code.instructions / at_a_time


Followed = tuple[float, float, list[tuple[str, float]]]  # time, bytes received, and what the steps took longest for


def _oneshot(nbytes: int, wire: float, ranks: int, counts: _Counts, machine: Machine) -> Followed:
    """x into the own slab, a meeting, the sum of all slabs."""
    config, received = counts.config(), (ranks - 1) * wire
    tiles, teams = ceil_div(counts.tiles(nbytes // 2), config.GRID), config.teams
    lay_down = Step(0, nbytes + wire, counts.of_step(1, tiles, config.TILES // teams, teams))
    add_up = Step(received, wire + nbytes, counts.of_step(2, tiles, max(1, config.SUM_TILES // teams), teams))
    busy = [step.longest(machine, config.GRID) for step in (lay_down, add_up)]
    fixed = machine.launch_us + machine.latency_us + MEETING_US + LINK_LATENCY_US
    return fixed + sum(us for _, us in busy), received, busy


def _twoshot(nbytes: int, wire: float, ranks: int, counts: _Counts, machine: Machine) -> Followed:
    """Shares to their owners, a meeting, adding, a meeting, sums from their owners: half of x by each half of the grid.

    The second half of the grid sends after the first has sent, and collects after the first has collected.
    """
    config, share = counts.config(), wire / ranks / 2  # of one half of the grid
    received, teams = (ranks - 1) * share, config.teams
    tiles = counts.tiles(ceil_div(nbytes // 2, ranks))  # of a share
    turns, own = ceil_div(ranks * tiles, config.GRID), ceil_div(tiles, config.GRID)  # most of a block
    send = Step(received, nbytes / 2 + ranks * share, counts.of_step(1, turns, config.TILES // teams, teams))
    add = Step(0, (ranks + 1) * share, counts.of_step(2, own, config.SUM_TILES))
    collect = Step(received, share + nbytes / 2, counts.of_step(3, turns, config.TILES // teams, teams))
    (_, send_us), (_, add_us), (_, collect_us) = busy = [
        step.longest(machine, config.GRID // 2) for step in (send, add, collect)
    ]
    added = MEETING_US + machine.latency_us + add_us + MEETING_US
    first_sent = machine.launch_us + machine.latency_us + send_us
    second_sent = first_sent + send_us
    first_collects = max(first_sent + added, second_sent) + LINK_LATENCY_US
    second_collects = max(second_sent + added + LINK_LATENCY_US, first_collects + collect_us)
    return second_collects + collect_us, 4 * received, [busy[0], busy[2]] * 2
