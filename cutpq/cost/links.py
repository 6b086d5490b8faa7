"""What collectives cost on the links between GPUs: an alpha-beta model of NCCL's rings, in pure functions.

A ring of n ranks moves S bytes in s steps: time = base + s * step + S * s / n / bus bandwidth, and a library picks the
protocol (LL, LL128, Simple) for which that is least. The constants are NCCL's own, for one node: file
src/graph/tuning.cc, version 2.30.7, and bandwidths per link of src/graph/topo.h. Its trees are never faster than the
best ring by the same constants (2 to 8 ranks, 64 B to 64 MiB), and NVLink SHARP is not modelled. Published
measurements on 8 GPUs of an NVLink machine lie within about 20 % of this model up to 1 MiB.

Times are in us, bytes in bytes, 1 GB/s = 10^9 B/s.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..array import ceil_div


@dataclass(frozen=True)
class Protocol:
    """One way in which a ring moves data: base and per-step latency in us, bus bandwidth in GB/s."""

    name: str
    base_us: float
    step_us: float
    bus_gb_s: float


@dataclass(frozen=True)
class Link:
    """What joins the GPUs of one node.

    kind      "nvlink" or "pcie"
    bus_gb_s  bandwidth of a ring in each direction, GB/s
    gpu       the GPU that sits on it, a key of GPUS
    ll_gb_s   most that the LL protocol reaches on this GPU generation (tuning.cc llMaxBws)
    """

    name: str
    kind: str
    bus_gb_s: float
    gpu: str
    ll_gb_s: float

    @property
    def protocols(self) -> tuple[Protocol, ...]:
        """The ring protocols that NCCL allows here: LL halves the bandwidth, LL128 is for NVLink only."""
        ll = min(self.ll_gb_s, 0.5 * self.bus_gb_s)
        if self.kind == "pcie":
            return Protocol("LL", 6.6, 1.0, ll), Protocol("Simple", 8.4, 5.7, self.bus_gb_s)
        return (
            Protocol("LL", 6.6, 0.6, ll),
            Protocol("LL128", 14.0, 1.9, 0.92 * self.bus_gb_s),
            Protocol("Simple", 8.4, 3.4, self.bus_gb_s),
        )

    def ring_us(self, nbytes: float, steps: int, n: int) -> float:
        """Time of so many steps of a ring of n ranks, each of which moves nbytes / n: by the quickest protocol."""
        check_ranks(n)
        if n == 1:
            return 0.0
        return min(p.base_us + steps * p.step_us + nbytes * steps / n / (p.bus_gb_s * 1e3) for p in self.protocols)


# topo.h: an NVLink of sm_80 carries 20.0 GB/s (A100 has 12), one of sm_90 20.6 (H100 and H200 have 18).
# PCIe 4.0 x16: 24 GB/s under one root, 10 across two sockets (as NCCL printed them: NVIDIA/nccl-tests#307).
# No published table of collectives on 8 L4 was found: both PCIe rows are the model alone.
LINKS = {
    link.name: link
    for link in (
        Link("a100-nvlink", "nvlink", 12 * 20.0, "a100", 87.7),
        Link("h100-nvlink", "nvlink", 18 * 20.6, "h100", 141.0),
        Link("h200-nvlink", "nvlink", 18 * 20.6, "h200", 141.0),
        Link("l4-pcie", "pcie", 24.0, "l4", 87.7),
        Link("l4-pcie-2s", "pcie", 10.0, "l4", 87.7),
    )
}


def all_reduce_us(nbytes: float, n: int, link: Link) -> float:
    """Time to sum n arrays of `nbytes`: a ring of 2 (n-1) steps."""
    return link.ring_us(nbytes, 2 * (n - 1), n)


def all_gather_us(nbytes: float, n: int, link: Link) -> float:
    """Time until every rank has all n parts, `nbytes` being their total: a ring of n-1 steps."""
    return link.ring_us(nbytes, n - 1, n)


def all_to_all_us(nbytes: float, n: int, link: Link) -> float:
    """Time to send each of n-1 peers its 1/n of this rank's `nbytes`.

    NCCL has no model of it. Taken for n-1 pairs of send and recv, one after the other through the links that a ring
    uses: the latency of an all_gather, and (n-1)/n of `nbytes` at bus bandwidth. Pairs that overlap do better.
    """
    return link.ring_us(nbytes, n - 1, n)


def all_reduce_sent(nbytes: int, n: int) -> int:
    """Bytes that a rank sends in a ring or two-shot all_reduce: 2 (n-1)/n of the array."""
    check_ranks(n)
    return ceil_div(2 * (n - 1) * nbytes, n)


def all_gather_sent(nbytes: int, n: int) -> int:
    """Bytes that a rank sends in an all_gather of `nbytes` in total: (n-1)/n of them."""
    check_ranks(n)
    return ceil_div((n - 1) * nbytes, n)


def all_to_all_sent(nbytes: int, n: int) -> int:
    """Bytes that a rank sends of the `nbytes` it has: (n-1)/n of them."""
    return all_gather_sent(nbytes, n)


def check_ranks(n: int) -> None:
    """Raise ValueError for a number of ranks below one."""
    if n < 1:
        raise ValueError(f"the number of ranks must be at least 1, got {n}")
