"""What a sum by peers (all_reduce_oneshot, all_reduce_twoshot) should take between GPUs on NVLink. All predicted.

time = launch + phases + a meeting between two phases. A phase takes the longest of
link    what it reads from peers, at the bandwidth that NCCL's tuning model gives the link
memory  what the rank reads and writes in its own memory, at the bandwidth of a copy
issue   the instructions of encode, decode_sum and decode_sum_encode, which do the same on one GPU (machine_code.py), by
        the eight warps of each of GRID blocks
and one latency, of the link where it reads from peers. A plain sum has so few instructions that they are not counted.
What is in flight (GRID blocks of 256 threads with four 16-byte loads: 2 MiB) is several times what a link needs.
"""

from __future__ import annotations

from dataclasses import dataclass

from cutpq.codecs.codec import Codec
from cutpq.codecs.config import EncodeConfig, wire_config
from cutpq.cost.links import LINKS, Link
from cutpq.kernels.config import FLOAT16
from cutpq.ranks.slab import GRID
from predict import machine_code
from predict.gemm import Machine

# A load from a peer's memory, and a meeting: a fence and a flag to every peer, then the flags of all. Assumed. With
# these the published times of another one-shot kernel come out 7 to 10 % low, those of its two-shot kernel 22 to 34 %.
LINK_LATENCY_US = 1.0
MEETING_US = 1.5

# vLLM's sums of float16 by peers, 6 ranks, bytes and us (vllm-project/vllm#24111; GPU not named, Hopper or newer).
PUBLISHED_ONESHOT = ((512 << 10, 13.0), (1 << 20, 21.0), (2 << 20, 38.0), (4 << 20, 70.0))
PUBLISHED_TWOSHOT = ((512 << 10, 15.0), (1 << 20, 17.0), (2 << 20, 26.0), (4 << 20, 37.0))

LINK_OF = {"h200": LINKS["h200-nvlink"], "h100": LINKS["h100-nvlink"], "a100": LINKS["a100-nvlink"]}


@dataclass(frozen=True)
class Phase:
    """Bytes from peers, bytes of the own memory, and warp instructions."""

    link_bytes: float
    memory_bytes: float
    instructions: float = 0.0

    def times(self, machine: Machine, link: Link) -> dict[str, float]:
        """Time in us of each as if it were alone."""
        warps_of_scheduler = 8 * GRID / machine.device.sms / 4
        fraction = min(machine.issue_fraction, warps_of_scheduler * machine.warp_fraction)
        slots_per_us = machine.device.sms * 4 * machine.clock_ghz * 1e3 * fraction
        return {
            "link": self.link_bytes / (link.bus_gb_s * 1e3),
            "memory": self.memory_bytes / (machine.copy_gb_s * 1e3),
            "issue": self.instructions / slots_per_us,
        }


@dataclass(frozen=True)
class PeerPrediction:
    """time_us; link_bytes that a rank reads from its peers; of_link: these over the time and the link's bandwidth.

    parts  us of link, memory and issue where each is the longest of its phase, and of what begins and meets
    """

    time_us: float
    link_bytes: float
    of_link: float
    parts: dict[str, float]

    @property
    def bound(self) -> str:
        """What takes most of the time."""
        return max(self.parts, key=lambda part: self.parts[part])


def predict(nbytes: int, ranks: int, algo: str, codec: Codec | None, machine: Machine) -> PeerPrediction:
    """The sum of `nbytes` of float16 on each of `ranks` GPUs, by algo "oneshot" or "twoshot"."""
    link, found = LINK_OF[machine.name], phases(nbytes, ranks, algo, codec, machine.arch)
    parts = {"link": 0.0, "memory": 0.0, "issue": 0.0, "start and meetings": machine.launch_us}
    for phase in found:
        times = phase.times(machine, link)
        longest = max(times, key=lambda part: times[part])
        parts[longest] += times[longest]
        parts["start and meetings"] += LINK_LATENCY_US if phase.link_bytes else machine.latency_us
    parts["start and meetings"] += MEETING_US * (len(found) - 1)
    time, received = sum(parts.values()), sum(phase.link_bytes for phase in found)
    return PeerPrediction(time, received, received / (time * link.bus_gb_s * 1e3), parts)


def phases(nbytes: int, ranks: int, algo: str, codec: Codec | None, arch: str) -> list[Phase]:
    """What a rank does between meetings."""
    wire = nbytes if codec is None else nbytes * codec.bits / 16
    n, others = nbytes // 2, ranks - 1
    lay_down = Phase(0, nbytes + wire, _instructions("encode", codec, 1, n, arch))
    if algo == "oneshot":
        return [lay_down, Phase(others * wire, wire + nbytes, _instructions("decode_sum", codec, ranks, n, arch))]
    share = wire / ranks
    add = Phase(others * share, 2 * share, _instructions("decode_sum_encode", codec, ranks, n // ranks, arch))
    return [lay_down, add, Phase(others * share, share + nbytes, _instructions("decode_sum", codec, 1, n, arch))]


def _instructions(kernel: str, codec: Codec | None, ranks: int, n: int, arch: str) -> float:
    """Warp instructions for n numbers, eight a thread."""
    if codec is None:
        return 0.0
    config = wire_config(codec.element, codec.block, codec.scale, codec.rule, FLOAT16, ranks)
    if kernel == "encode":
        config = EncodeConfig(**vars(config), PACKED=False)
    return machine_code.tile_code(kernel, config, arch).instructions * n / 256
