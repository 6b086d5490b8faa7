"""How fast a GPU encodes, decodes and adds what ranks sent, against a copy in the same run.

    python bench/codec_kernels.py                  on a GPU, 32 and 128 MiB of float16
    python bench/codec_kernels.py --predict        from machine code, for an H200, an H100 and an A100; needs no GPU
    python bench/codec_kernels.py --predict-peers  sums over eight such GPUs, by reading each other's memory
    CUTPQ_HOST_KERNELS=1 python bench/codec_kernels.py --smoke      the same kernels on the CPU: does everything work?

Every byte that a kernel must read or write counts once, array and wires. ranks: whose wires decode_sum and
decode_sum_encode add. of_copy: the kernel's bandwidth over that of a copy of the array. On a GPU, operands and results
rotate over copies that no L2 keeps, in a CUDA graph. check: the first and the last numbers have the bits of the
formulas in NumPy.

This has not run on a GPU yet.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
from harness.flags import codecs, nbytes
from harness.gpu_clock import NoGpu, gpu_module, graph_us
from harness.report import Column, Table, header, write_json
from predict.gemm import MACHINES, Machine
from predict.machine_code import DisassemblerMissing, tile_code
from predict.peers import predict as predict_sum

from cutpq.array import Array, ceil_div, to_numpy
from cutpq.codecs import launch as wire
from cutpq.codecs.codec import Codec
from cutpq.codecs.config import WireConfig, encode_config, sum_config, sum_encode_config
from cutpq.kernels import load as kernels
from cutpq.kernels.config import FLOAT16
from cutpq.kernels.source import source_digest
from cutpq.ranks.alone import SelfCommunicator

CODECS = "mxfp8-e4m3,mxfp4"
SIZES = (32 << 20, 128 << 20)  # bytes of a float16 array
SMOKE_SIZES = (64 << 10,)
RANKS = (2, 4, 8)
SPREAD = 256 << 20  # operands and results rotate over copies of so many bytes: several times an L2
CHECKED = 1 << 18  # numbers compared with the formulas at either end of a result

COLUMNS = (
    Column("size", "size(B)", 10),
    Column("kernel", "kernel", 17),
    Column("codec", "codec", 19),
    Column("ranks", "ranks", 5),
    Column("moved_bytes", "moved_bytes", 11),
)
TABLE = Table(
    (
        *COLUMNS,
        Column("time_us", "time(us)", 10, ".1f"),
        Column("gb_s", "GB/s", 8, ".1f"),
        Column("of_copy", "of_copy", 7, ".2f"),
        Column("check", "check", 5),
    )
)
PREDICTED_TABLE = Table(
    (
        Column("machine", "machine", 7),
        *COLUMNS[1:4],
        Column("scales", "scales", 6),
        Column("instructions", "instructions", 12, ".0f"),
        Column("integer", "integer", 7, ".0f"),
        Column("bytes", "bytes", 6, ".0f"),
        Column("gb_s", "GB/s_proj", 9, ".0f"),
        Column("of_copy", "of_copy_proj", 12, ".2f"),
        Column("bound", "bound", 7),
    )
)

PEER_RANKS = 8
PEER_SIZES = tuple(kib << 10 for kib in (256, 1024, 4096, 8192, 16384, 65536, 262144))  # bytes of a float16 array
GOAL_FROM = 4 << 20  # bytes of a wire from which a sum should reach 0.8 of the link's bandwidth
PEERS_TABLE = Table(
    (
        Column("machine", "machine", 7),
        Column("algo", "algo", 7),
        Column("codec", "codec", 19),
        Column("size", "size(B)", 10),
        Column("wire_bytes", "wire(B)", 10, ".0f"),
        Column("link_bytes", "link_bytes", 11, ".0f"),
        Column("time_us", "time(us)_proj", 13, ".1f"),
        Column("of_link", "of_link_proj", 12, ".2f"),
        Column("bus_gb_s", "busbw_proj", 10, ".0f"),
        Column("bound", "bound", 18),
    )
)

LOWEST_TABLE = Table(
    (
        *PEERS_TABLE.columns[:3],
        Column("scales", "scales", 6),
        *PEERS_TABLE.columns[3:5],
        Column("of_link", "of_link_proj", 12, ".2f"),
    )
)

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, write what was asked for; 1 where a check fails, 2 without a GPU."""
    args = parse(argv)
    if args.predict or args.predict_peers:
        return print_prediction(args)
    xp: ModuleType = np
    if not kernels.usable(np):
        try:
            xp = gpu_module()
        except NoGpu as error:
            print(f"codec_kernels.py: {error}; or CUTPQ_HOST_KERNELS=1 with --smoke", file=sys.stderr)
            return 2
    found = rows(args.codecs, xp, args.sizes, 0 if args.smoke else SPREAD)
    device = None if xp is np else int(xp.cuda.runtime.getDevice())
    print("\n".join([*header(SelfCommunicator("kernels alone", xp, device)), *lines(found)]))
    if args.json:
        write_json(args.json, found)
    return 1 if any(row["check"] == "FAIL" for row in found) else 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Flags, with the sizes that --smoke stands for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "-b", "--bytes", dest="sizes", type=nbytes, nargs="+", metavar="B", help="of float16, with K, M or G (32M 128M)"
    )
    add(
        "--codecs", type=codecs, default=CODECS, metavar="C,C,...", help=f"names as in cutpq/codecs/names.py ({CODECS})"
    )
    add("--predict", action="store_true", help="count instructions and bytes instead")
    add("--predict-peers", action="store_true", help="the same for sums by peers over NVLink, plain and by each codec")
    add("--json", type=Path, metavar="FILE", help="write one object a row")
    add("--smoke", action="store_true", help="64K, two calls of each kernel")
    args = parser.parse_args(argv)
    args.sizes = args.sizes or (SMOKE_SIZES if args.smoke else SIZES)
    return args


# --- measuring -----------------------------------------------------------------------------------------------------


def rows(codecs: Sequence[Codec], xp: ModuleType, sizes: Sequence[int] = SIZES, spread: int = SPREAD) -> list[Row]:
    """For every size the copy, then each codec's kernels, on the device that xp computes on.

    spread  bytes that the calls of a measurement go through, so that no cache holds them; 0 for two calls on the same
    """
    return [row for size in sizes for row in _of_size(codecs, xp, size // 2, 0 if xp is np else spread)]


def _of_size(codecs: Sequence[Codec], xp: ModuleType, n: int, spread: int) -> list[Row]:
    x = xp.asarray(np.random.default_rng(0).standard_normal(n, np.float32).astype(np.float16))
    found: list[Row] = []

    def add(kernel: str, codec: Codec | None, ranks: int, moved: int, call: Callable[[int], Any], ok: bool) -> None:
        took = graph_us(_keeping(call, moved, spread), max(8, _copies(moved, spread)) if spread else 2, xp)
        rate = moved / took / 1e3
        found.append(
            {"size": x.nbytes, "kernel": kernel, "codec": codec and codec.name, "ranks": ranks, "moved_bytes": moved}
            | {"time_us": took, "gb_s": rate, "of_copy": rate / found[0]["gb_s"] if found else 1.0}
            | {"check": "ok" if ok else "FAIL", "projected": False}
        )

    xs = _rotated(x, 2 * x.nbytes, spread)
    add("copy", None, 1, 2 * x.nbytes, lambda i: xs[i % len(xs)].copy(), True)
    for codec in codecs:
        wires = xp.stack([wire.encode(xp.roll(x, 4099 * rank), codec) for rank in range(max(RANKS))])
        one = wires[0]

        def encode(i: int, c: Codec = codec) -> Array:
            return wire.encode(xs[i % len(xs)], c)

        add("encode", codec, 1, x.nbytes + one.nbytes, encode, _encodes(x, one, codec))
        for ranks in (1, *RANKS):
            moved = ranks * one.nbytes + x.nbytes
            several = _rotated(wires[:ranks], moved, spread)

            def decode_sum(i: int, c: Codec = codec, w: list[Array] = several) -> Array:
                return wire.decode_sum(w[i % len(w)], c, n, np.float16)

            add("decode_sum", codec, ranks, moved, decode_sum, _adds(decode_sum(0), several[0], codec))
        for ranks in RANKS:
            moved = (ranks + 1) * one.nbytes
            several = _rotated(wires[:ranks], moved, spread)

            def decode_sum_encode(i: int, c: Codec = codec, w: list[Array] = several) -> Array:
                return wire.decode_sum_encode(w[i % len(w)], c, n)

            ok = _adds_and_encodes(decode_sum_encode(0), several[0], codec, n)
            add("decode_sum_encode", codec, ranks, moved, decode_sum_encode, ok)
    return found


def _copies(moved: int, spread: int) -> int:
    return max(1, ceil_div(spread, moved))


def _rotated(x: Array, moved: int, spread: int) -> list[Array]:
    """x and copies of it: enough for calls that move `moved` bytes each to go through `spread` bytes."""
    return [x] + [x.copy() for _ in range(1, _copies(moved, spread))]


def _keeping(call: Callable[[int], Any], moved: int, spread: int) -> Callable[[int], None]:
    """`call` with its results kept for a while, so that the next result lies in other memory."""
    kept: deque[Any] = deque(maxlen=_copies(moved, spread))
    return lambda i: kept.append(call(i))


# --- checking ------------------------------------------------------------------------------------------------------


@contextmanager
def formulas() -> Iterator[None]:
    """NumPy arrays go through the formulas here, whatever the environment says."""
    with patch.dict(os.environ, {"CUTPQ_HOST_KERNELS": "0"}):
        yield


def _ends(n: int, codec: Codec) -> list[slice]:
    """The first and the last numbers, from where both a block and a byte of scales begin."""
    unit = 8 * codec.block
    return [slice(0, min(n, CHECKED)), slice(max(0, n - CHECKED) // unit * unit, n)]


def _piece(one: Array, codec: Codec, n: int, part: slice) -> np.ndarray:
    """The wire of part of the n numbers of a wire, whole blocks."""
    blocks = slice(part.start // codec.block, part.stop // codec.block)
    width, bits = codec.block * codec.element.bits // 8, codec.scale.bits
    scales_at = n // codec.block * width
    scales = slice(scales_at + blocks.start * bits // 8, scales_at + ceil_div(blocks.stop * bits, 8))
    elements = slice(blocks.start * width, blocks.stop * width)
    return np.concatenate([to_numpy(one[elements]), to_numpy(one[scales])])


def _encodes(x: Array, one: Array, codec: Codec) -> bool:
    with formulas():
        return all(
            np.array_equal(_piece(one, codec, x.size, part), codec.encode(to_numpy(x[part])))
            for part in _ends(x.size, codec)
        )


def _summed(wires: Array, codec: Codec, n: int, part: slice) -> np.ndarray:
    terms = [codec.decode(_piece(one, codec, n, part)) for one in wires]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _adds(y: Array, wires: Array, codec: Codec) -> bool:
    with formulas():
        return all(
            to_numpy(y[part]).tobytes() == _summed(wires, codec, y.size, part).astype(y.dtype).tobytes()
            for part in _ends(y.size, codec)
        )


def _adds_and_encodes(total: Array, wires: Array, codec: Codec, n: int) -> bool:
    with formulas():
        return all(
            np.array_equal(_piece(total, codec, n, part), codec.encode(_summed(wires, codec, n, part)))
            for part in _ends(n, codec)
        )


def lines(found: list[Row]) -> list[str]:
    """The table; nothing without a GPU."""
    if not found:
        return []
    title = "# kernels alone, float16; of_copy: their bandwidth over that of a copy of the array in this run"
    return ["#", title, TABLE.heading(), *map(TABLE.line, found)]


# --- predicting ----------------------------------------------------------------------------------------------------


def predicted(codec: Codec, machine: Machine, size: int = SIZES[0]) -> Iterator[Row]:
    """What a machine should reach at so many bytes of float16: the slower of its issue slots and its memory.

    scales                 of the ranks: near enough for sums in half2, or far apart (tile/packed_sum.cuh), which is
                           counted for decode_sum only
    instructions, integer  of a warp for a tile of 256 numbers, with its part of what a block begins with
    bytes                  that such a tile must read and write
    """
    n = size // 2
    for kernel, ranks in [
        ("encode", 1),
        *(("decode_sum", r) for r in RANKS),
        *(("decode_sum_encode", r) for r in RANKS),
    ]:
        config = _config(kernel, codec, ranks)
        ways = {"near": tile_code(kernel, config, machine.arch)}
        if kernel == "decode_sum":
            ways["far"] = tile_code(kernel, config, machine.arch, far=True)
        numbers = 32 * 8 * config.groups  # numbers of a tile that one warp handles
        tiles_of_block = 32 * n / (numbers * config.THREADS) / config.blocks(n)
        one = codec.bits / 8
        moved = 256 * {"encode": 2 + one, "decode_sum": ranks * one + 2, "decode_sum_encode": (ranks + 1) * one}[kernel]
        a_second = machine.device.sms * 4 * machine.clock_ghz * machine.issue_fraction  # warp instructions, 10^9
        packs = kernel == "decode_sum_encode" and getattr(config, "PACKED", False)
        if len(set(ways.values())) == 1 and not packs:
            ways = {"any": ways["near"]}
        for scales, code in ways.items():
            instructions = (code.instructions + code.outside / tiles_of_block) * 256 / numbers
            integers = code.integer * 256 / numbers
            issue, integer = moved * a_second / instructions, moved * a_second / (2 * integers)
            limits = {"memory": machine.copy_gb_s, "issue": issue, "integer": integer}
            bound = min(limits, key=lambda name: limits[name])
            yield {
                "machine": machine.name, "kernel": kernel, "codec": codec.name, "ranks": ranks, "scales": scales,
                "size": size, "instructions": instructions, "integer": integers, "bytes": moved,
                "gb_s": limits[bound], "of_copy": limits[bound] / machine.copy_gb_s, "bound": bound, "projected": True,
            }  # fmt: skip


def _config(kernel: str, codec: Codec, ranks: int) -> WireConfig:
    """What the library launches this kernel with."""
    facts = codec.element, codec.block, codec.scale, codec.rule
    if kernel == "encode":
        return encode_config(*facts, FLOAT16)
    if kernel == "decode_sum_encode":
        return sum_encode_config(*facts, ranks)
    return sum_config(*facts, FLOAT16, ranks)


def print_prediction(args: argparse.Namespace) -> int:
    """Print the predicted table; 2 where the compiler or the disassembler is missing."""
    try:
        if args.predict_peers:
            return print_peers(args)
        found = [
            row for machine in MACHINES.values() for c in args.codecs for row in predicted(c, machine, args.sizes[0])
        ]
    except DisassemblerMissing as error:
        print(f"codec_kernels.py: {error}", file=sys.stderr)
        return 2
    print(f"# PREDICTED, not measured, for {args.sizes[0]} bytes of float16; CUDA sources {source_digest()}.")
    print(
        "# Issue slots and integer units by the instructions of machine code, memory by a copy: bench/predict/gemm.py"
    )
    print(PREDICTED_TABLE.heading())
    print("\n".join(map(PREDICTED_TABLE.line, found)))
    if args.json:
        write_json(args.json, found)
    return 0


def predicted_sums(codecs: Sequence[Codec], machine: Machine) -> Iterator[Row]:
    """What sums by peers should take on eight of these machines, plain and by each codec.

    wire_bytes  of the whole array
    of_link     what a rank reads from its peers, over the time and the link's bandwidth
    bus_gb_s    as nccl-tests counts: 2 (ranks - 1) / ranks of the array over the time
    """
    for algo in ("oneshot", "twoshot"):
        for codec in (None, *codecs):
            for size in PEER_SIZES:
                found = predict_sum(size, PEER_RANKS, algo, codec, machine)
                yield {
                    "machine": machine.name, "algo": algo, "codec": codec and codec.name, "size": size,
                    "wire_bytes": size * _wire_ratio(codec), "link_bytes": found.link_bytes,
                    "time_us": found.time_us, "of_link": found.of_link,
                    "bus_gb_s": 2 * (PEER_RANKS - 1) / PEER_RANKS * size / found.time_us / 1e3, "bound": found.bound,
                    "ranks": PEER_RANKS, "projected": True,
                }  # fmt: skip


def _wire_ratio(codec: Codec | None) -> float:
    """Bytes of the wire for each byte of float16."""
    return codec.bits / 16 if codec else 1.0


def lowest_share(algo: str, codec: Codec | None, machine: Machine, far: bool) -> Row:
    """The size from GOAL_FROM bytes of wire on, in steps of 1 % up to 64 times as many, that has the lowest of_link."""
    granules = [int(GOAL_FROM / _wire_ratio(codec) * 1.01**step / 256 + 1) for step in range(420)]
    shares = {
        256 * count: predict_sum(256 * count, PEER_RANKS, algo, codec, machine, far).of_link for count in granules
    }
    size = min(shares, key=lambda size: shares[size])
    return {
        "machine": machine.name, "algo": algo, "codec": codec and codec.name, "scales": "far" if far else "near",
        "size": size, "wire_bytes": size * _wire_ratio(codec), "of_link": shares[size],
    }  # fmt: skip


def print_peers(args: argparse.Namespace) -> int:
    """Print the predicted table of sums by peers, and where their share of the link is lowest."""
    found = [row for name in ("h100", "a100") for row in predicted_sums(args.codecs, MACHINES[name])]
    print(
        f"# PREDICTED, not measured: sums of float16 over {PEER_RANKS} GPUs by peers; CUDA sources {source_digest()}."
    )
    print("# The model: bench/predict/peers.py. H200 has the links and the clocks of H100.")
    print(PEERS_TABLE.heading())
    print("\n".join(map(PEERS_TABLE.line, found)))
    print(f"# The lowest of_link from {GOAL_FROM} bytes of wire on; scales: of the ranks, as in the table of kernels.")
    print(LOWEST_TABLE.heading())
    for name in ("h100", "a100"):
        for algo in ("oneshot", "twoshot"):
            for codec in (None, *args.codecs):
                near, far = (lowest_share(algo, codec, MACHINES[name], apart) for apart in (False, True))
                for row in (near, far) if near["of_link"] != far["of_link"] else (near | {"scales": "any"},):
                    print(LOWEST_TABLE.line(row))
    if args.json:
        write_json(args.json, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
