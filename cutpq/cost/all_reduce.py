"""What a sum over ranks costs with a codec: the bytes that a rank sends, its time, and which algorithm is quickest."""

from __future__ import annotations

from ..codecs.layout import Layout
from .gpus import GPUS
from .links import Link, all_gather_us, all_reduce_us, all_to_all_us, check_ranks

# The least gain, as a share of the plain all_reduce's time, for which it pays to lose precision.
WORTHWHILE = 0.1


def oneshot_sent(count: int, n: int, codec: Layout) -> int:
    """Bytes that a rank sends to sum `count` elements in one shot: its wire, to n-1 others."""
    check_ranks(n)
    return (n - 1) * codec.wire_bytes(codec.padded(count))


def twoshot_sent(count: int, n: int, rank: int, codec: Layout) -> int:
    """Bytes that a rank sends to sum `count` elements in two shots: the others' shares, then its own n-1 times.

    Where every rank has the same share: 2 (n-1)/n of the wire.
    """
    check_ranks(n)
    wires = [codec.wire_bytes(share) for share in codec.shares(count, n)]
    return sum(wires) - wires[rank] + (n - 1) * wires[rank]


def compressed_all_reduce_us(algo: str, count: int, itemsize: int, n: int, codec: Layout, link: Link) -> float:
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


def choose_all_reduce(count: int, itemsize: int, n: int, codec: Layout | None, link: Link) -> tuple[str, str]:
    """Which of "plain", "oneshot" and "twoshot" is quickest by this model, and the times that decided it.

    Compression costs precision: it has to be quicker by a tenth.
    """
    if codec is None or n == 1 or count == 0:
        return "plain", "nothing to compress"
    times = {"plain": all_reduce_us(count * itemsize, n, link)}
    for algo in ("oneshot", "twoshot"):
        times[algo] = compressed_all_reduce_us(algo, count, itemsize, n, codec, link)
    return quickest(times), f"predicted on {link.name}: {in_words(times)}"


def quickest(times: dict[str, float]) -> str:
    """The algorithm with the least time; "plain" unless another is quicker by WORTHWHILE."""
    best = min(times, key=lambda algo: times[algo])
    return "plain" if times[best] > (1 - WORTHWHILE) * times["plain"] else best


def in_words(times: dict[str, float]) -> str:
    """The times as `algo="auto"` prints them."""
    return ", ".join(f"{algo} {us:.0f} us" for algo, us in times.items())
