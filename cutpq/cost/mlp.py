"""What collectives, products and permutations cost on a named machine: an alpha-beta model, in pure functions.

Links. A ring of n ranks moves S bytes in s steps: time = base + s * step + S * s / n / bus bandwidth, and a library
picks the protocol (LL, LL128, Simple) for which that is least. The constants are NCCL's own, for one node: file
src/graph/tuning.cc, version 2.30.7, and bandwidths per link of src/graph/topo.h. Its trees are never faster than the
best ring by the same constants (2 to 8 ranks, 64 B to 64 MiB), and NVLink SHARP is not modelled. Published
measurements on 8 GPUs of an NVLink machine lie within about 20 % of this model up to 1 MiB.

GPUs. A product takes the longer of its memory traffic and its arithmetic, plus one kernel launch. Peaks are those of
NVIDIA's data sheets (dense fp16, no sparsity), of which a stated fraction is taken for achievable.

Nothing here is fitted to a measurement of tensor-parallel layers. Times are in us, bytes in bytes, 1 GB/s = 10^9 B/s.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..array import ceil_div
from ..codecs.codec import Codec
from ..weights.schemes import GROUP_ALIGNED, SCHEMES, refusals

ACTIVATION_BYTES = 2
SCALE_BYTES = 2
INDEX_BYTES = 4

# The least gain, as a share of the plain all_reduce's time, for which it pays to lose precision.
WORTHWHILE = 0.1


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


@dataclass(frozen=True)
class Gpu:
    """A GPU by its data sheet, and what part of it a good kernel gets.

    memory_gb_s, fp16_tflops  published peaks, arithmetic dense
    memory_fraction   0.85: what weight-only kernels of several authors reached on H100 and H200 (84 and 85 %, from
                      the differences between 8- and 4-bit times of one shape)
    compute_fraction  0.6: mma.sync kernels end at 62 to 75 % of Hopper's peak and at 45 % of an A100's
    cache_ratio       L2 over memory bandwidth: A100, 5120 B per clock at 1.41 GHz against 2039 GB/s; for want of
                      other published figures the same on all
    launch_us         from one kernel's end to the next one's start, in a stream without graph capture
    """

    name: str
    memory_gb_s: float
    fp16_tflops: float
    memory_fraction: float = 0.85
    compute_fraction: float = 0.6
    cache_ratio: float = 3.5
    launch_us: float = 3.0

    def read_us(self, nbytes: float) -> float:
        """Time to stream that many bytes between memory and the multiprocessors."""
        return nbytes / (self.memory_gb_s * self.memory_fraction * 1e3)


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100", 2039.0, 312.0),  # A100 80GB SXM
        Gpu("h100", 3350.0, 989.0),  # H100 SXM
        Gpu("h200", 4800.0, 989.0),  # H200 SXM
        Gpu("l4", 300.0, 121.0),
    )
}


@dataclass(frozen=True)
class WeightFormat:
    """How weights are stored. Sixteen bits are plain float16: no groups, and act-order means nothing."""

    bits: int
    group_size: int = 128
    symmetric: bool = True

    @property
    def name(self) -> str:
        return "fp16" if self.bits == 16 else f"int{self.bits}-g{self.group_size}"

    def groups(self, K: int) -> int:
        """Groups of a weight of K rows; none in float16."""
        return 0 if self.bits == 16 else ceil_div(K, self.group_size)


FP16 = WeightFormat(16)
INT4 = WeightFormat(4)


@dataclass(frozen=True)
class MlpShape:
    """(M, K) -> (M, H) -> (M, N): act(x @ gate) * (x @ up) @ down, or without gate act(x @ up) @ down."""

    name: str
    K: int
    H: int
    N: int
    gated: bool


@dataclass(frozen=True)
class LayerCost:
    """Time of one rank's part of a layer, what it reads from its memory and what it sends to other ranks."""

    gemm_us: float
    exchange_us: float = 0.0
    permute_us: float = 0.0
    all_reduce_us: float = 0.0
    read_bytes: int = 0
    sent_bytes: int = 0

    @property
    def total_us(self) -> float:
        return self.gemm_us + self.exchange_us + self.permute_us + self.all_reduce_us


@dataclass(frozen=True)
class MlpCost:
    """Where an MLP's time goes on one rank."""

    gemm1_us: float
    exchange_us: float
    permute_us: float
    gemm2_us: float
    all_reduce_us: float
    read_bytes: int = 0
    sent_bytes: int = 0

    @property
    def total_us(self) -> float:
        return self.gemm1_us + self.exchange_us + self.permute_us + self.gemm2_us + self.all_reduce_us


# --- collectives ---------------------------------------------------------------------------------------------------


def all_reduce_us(nbytes: float, n: int, link: Link) -> float:
    """Time to sum n arrays of `nbytes`: a ring of 2 (n-1) steps."""
    return _ring_us(nbytes, 2 * (n - 1), n, link)


def all_gather_us(nbytes: float, n: int, link: Link) -> float:
    """Time until every rank has all n parts, `nbytes` being their total: a ring of n-1 steps."""
    return _ring_us(nbytes, n - 1, n, link)


def all_to_all_us(nbytes: float, n: int, link: Link) -> float:
    """Time to send each of n-1 peers its 1/n of this rank's `nbytes`.

    NCCL has no model of it. Taken for n-1 pairs of send and recv, one after the other through the links that a ring
    uses: the latency of an all_gather, and (n-1)/n of `nbytes` at bus bandwidth. Pairs that overlap do better.
    """
    return _ring_us(nbytes, n - 1, n, link)


def all_reduce_sent(nbytes: int, n: int) -> int:
    """Bytes that a rank sends in a ring or two-shot all_reduce: 2 (n-1)/n of the array."""
    _check_ranks(n)
    return ceil_div(2 * (n - 1) * nbytes, n)


def all_gather_sent(nbytes: int, n: int) -> int:
    """Bytes that a rank sends in an all_gather of `nbytes` in total: (n-1)/n of them."""
    _check_ranks(n)
    return ceil_div((n - 1) * nbytes, n)


def all_to_all_sent(nbytes: int, n: int) -> int:
    """Bytes that a rank sends of the `nbytes` it has: (n-1)/n of them."""
    return all_gather_sent(nbytes, n)


# --- compressed all_reduce -----------------------------------------------------------------------------------------


def oneshot_sent(count: int, n: int, codec: Codec) -> int:
    """Bytes that a rank sends to sum `count` elements in one shot: its wire, to n-1 others."""
    _check_ranks(n)
    return (n - 1) * codec.wire_bytes(codec.padded(count))


def twoshot_sent(count: int, n: int, rank: int, codec: Codec) -> int:
    """Bytes that a rank sends to sum `count` elements in two shots: the others' shares, then its own n-1 times.

    Where every rank has the same share: 2 (n-1)/n of the wire.
    """
    _check_ranks(n)
    wires = [codec.wire_bytes(share) for share in codec.shares(count, n)]
    return sum(wires) - wires[rank] + (n - 1) * wires[rank]


def compressed_all_reduce_us(algo: str, count: int, itemsize: int, n: int, codec: Codec, link: Link) -> float:
    """Time to sum `count` elements by "oneshot" or "twoshot": the transfers, and kernels bound by memory.

    oneshot: encode, all_gather of the wires, decode and add all of them.
    twoshot: encode, all_to_all, decode, add and encode a share, all_gather, decode.
    """
    S, wire, gpu = count * itemsize, codec.wire_bytes(codec.padded(count)), GPUS[link.gpu]
    encode_us = gpu.launch_us + gpu.read_us(S + wire)
    if algo == "oneshot":
        decode_us = gpu.launch_us + gpu.read_us(n * wire + S)
        return encode_us + all_gather_us(n * wire, n, link) + decode_us
    middle_us = gpu.launch_us + gpu.read_us(wire + wire / n)
    transfers_us = all_to_all_us(wire, n, link) + all_gather_us(wire, n, link)
    return encode_us + transfers_us + middle_us + gpu.launch_us + gpu.read_us(wire + S)


def choose_all_reduce(count: int, itemsize: int, n: int, codec: Codec | None, link: Link) -> tuple[str, str]:
    """Which of "plain", "oneshot" and "twoshot" is quickest by this model, and the times that decided it.

    Compression costs precision: it has to be quicker by a tenth.
    """
    if codec is None or n == 1 or count == 0:
        return "plain", "nothing to compress"
    times = {"plain": all_reduce_us(count * itemsize, n, link)}
    for algo in ("oneshot", "twoshot"):
        times[algo] = compressed_all_reduce_us(algo, count, itemsize, n, codec, link)
    best = min(times, key=lambda algo: times[algo])
    if times[best] > (1 - WORTHWHILE) * times["plain"]:
        best = "plain"
    predicted = ", ".join(f"{algo} {us:.0f} us" for algo, us in times.items())
    return best, f"predicted on {link.name}: {predicted}"


def _ring_us(nbytes: float, steps: int, n: int, link: Link) -> float:
    _check_ranks(n)
    if n == 1:
        return 0.0
    return min(p.base_us + steps * p.step_us + nbytes * steps / n / (p.bus_gb_s * 1e3) for p in link.protocols)


def _check_ranks(n: int) -> None:
    if n < 1:
        raise ValueError(f"the number of ranks must be at least 1, got {n}")


# --- kernels -------------------------------------------------------------------------------------------------------


def weight_bytes(K: int, N: int, form: WeightFormat, groups: int | None = None) -> int:
    """Bytes of a (K, N) weight: codes, scales of `groups` groups, and packed zeros where it is not symmetric.

    groups  default: those of K rows in order; a rank that holds scattered rows needs the scales of more
    """
    groups = form.groups(K) if groups is None else groups
    zeros = 0 if form.symmetric else ceil_div(groups * N * form.bits, 8)
    return ceil_div(K * N * form.bits, 8) + groups * N * SCALE_BYTES + zeros


def gemm_us(M: int, N: int, K: int, form: WeightFormat, gpu: Gpu, extra_bytes: float = 0.0) -> float:
    """Time of (M, K) @ (K, N): the longer of memory traffic and arithmetic, plus a launch.

    extra_bytes  what the kernel reads beyond weight and activations: scales of foreign groups, an index
    """
    nbytes = weight_bytes(K, N, form) + M * (K + N) * ACTIVATION_BYTES + extra_bytes
    arithmetic_us = 2 * M * N * K / (gpu.fp16_tflops * gpu.compute_fraction * 1e6)
    return max(gpu.read_us(nbytes), arithmetic_us) + gpu.launch_us


def permute_us(M: int, columns: int, gpu: Gpu) -> float:
    """Time of x[:, perm] with `columns` columns: read and write them, read the index, one launch."""
    return gpu.read_us(2 * M * columns * ACTIVATION_BYTES + columns * INDEX_BYTES) + gpu.launch_us


# --- layers --------------------------------------------------------------------------------------------------------


def column_parallel(M: int, K: int, N: int, form: WeightFormat, gpu: Gpu) -> LayerCost:
    """A rank's (M, K) @ (K, N) with its own N columns. Sends nothing.

    Its own act-order is a gather of x that every scheme has alike and that fuses into what writes x: not counted.
    """
    return LayerCost(gemm_us(M, N, K, form, gpu), read_bytes=weight_bytes(K, N, form))


def row_parallel(
    scheme: str, M: int, rows: int, N: int, tp: int, form: WeightFormat, gpu: Gpu, link: Link, groups: int
) -> LayerCost:
    """A rank's (M, rows) @ (rows, N) under a scheme, with what happens before the product and the all_reduce after.

    rows    input features of the rank that has most
    groups  groups whose scales this rank reads: its own share for the group-aligned schemes, nearly all for
            `local` and `unordered`, whose rows are scattered over them

    `naive` gathers and picks its columns in one pass; `all-to-all` packs and unpacks, two passes; `local` permutes its
    own columns. `unordered` reads a row of scales for each row of weights, from the L2 cache, where they fit.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme {scheme!r} is not one of {', '.join(SCHEMES)}")
    own = M * rows * ACTIVATION_BYTES
    exchange_us, sent = 0.0, all_reduce_sent(M * N * ACTIVATION_BYTES, tp)
    if scheme == "naive":
        exchange_us, sent = all_gather_us(own * tp, tp, link), sent + all_gather_sent(own * tp, tp)
    elif scheme == "all-to-all":
        exchange_us, sent = all_to_all_us(own, tp, link), sent + all_to_all_sent(own, tp)
    passes = {"naive": 1, "all-to-all": 2, "local": 1}.get(scheme, 0)

    quantized = form.bits != 16
    read_bytes = weight_bytes(rows, N, form, groups)
    if scheme not in GROUP_ALIGNED and quantized:
        read_bytes += rows * INDEX_BYTES
    extra = float(read_bytes - weight_bytes(rows, N, form))
    if scheme == "unordered" and quantized:
        extra += rows * N * SCALE_BYTES / gpu.cache_ratio
    return LayerCost(
        gemm_us=gemm_us(M, N, rows, form, gpu, extra),
        exchange_us=exchange_us,
        permute_us=passes * permute_us(M, rows, gpu),
        all_reduce_us=all_reduce_us(M * N * ACTIVATION_BYTES, tp, link),
        read_bytes=read_bytes,
        sent_bytes=sent,
    )


def mlp_cost(shape: MlpShape, M: int, tp: int, scheme: str, form: WeightFormat, gpu: Gpu, link: Link) -> MlpCost:
    """An act-ordered MLP on `tp` ranks, on the rank that has most: gate and up in one product, activation fused.

    Ranks take whole groups of the second weight (any rows where it is float16). Raises ValueError where a scheme
    needs whole groups on a rank and there are more ranks than groups.
    """
    groups = form.groups(shape.H)
    refused = refusals(groups, tp) if groups else {}
    if scheme in refused:
        raise ValueError(f"scheme {scheme!r} {refused[scheme]}")
    _check_ranks(tp)
    if groups >= tp:
        rows = min(ceil_div(groups, tp) * form.group_size, shape.H)
    else:
        rows = ceil_div(shape.H, tp)
    if scheme in GROUP_ALIGNED:
        groups = form.groups(rows)
    first = column_parallel(M, shape.K, (2 if shape.gated else 1) * rows, form, gpu)
    second = row_parallel(scheme, M, rows, shape.N, tp, form, gpu, link, groups)
    return MlpCost(
        gemm1_us=first.gemm_us,
        exchange_us=second.exchange_us,
        permute_us=second.permute_us,
        gemm2_us=second.gemm_us,
        all_reduce_us=second.all_reduce_us,
        read_bytes=first.read_bytes + second.read_bytes,
        sent_bytes=second.sent_bytes,
    )
