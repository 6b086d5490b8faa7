"""How fast a GPU encodes and decodes, against a copy of the same data in the same run.

Every byte that a kernel must read or write counts once: array and wire. This has not run on a GPU yet; its tests call
it with NumPy arrays, where the codec's reference does the work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from report import Column, Table, time_us

from cutpq.codec import Codec
from cutpq.comm import Communicator
from cutpq.communicator import SelfCommunicator

MIB = 32  # of float16: more than an L2 keeps while it also holds the wire and the decoded array

TABLE = Table(
    (
        Column("kernel", "kernel", 8),
        Column("codec", "codec", 19),
        Column("moved_bytes", "moved_bytes", 11),
        Column("time_us", "time(us)", 10, ".1f"),
        Column("gb_s", "GB/s", 8, ".1f"),
        Column("of_copy", "of_copy", 7, ".2f"),
    )
)

Row = dict[str, Any]


def rows(codecs: Sequence[Codec], comm: Communicator, mib: int = MIB, iterations: int = 20) -> list[Row]:
    """The copy, then encode and decode of each codec, on this rank's device alone."""
    alone = SelfCommunicator("alone", comm.xp, comm.device)
    x = comm.xp.asarray(np.random.default_rng(0).standard_normal(mib << 19, np.float32).astype(np.float16))
    decoded, same = comm.xp.empty(x.size, np.float32), comm.xp.empty_like(x)
    found: list[Row] = []

    def add(kernel: str, codec: Codec | None, moved: int, call: Callable[[], Any]) -> None:
        took = time_us(call, alone, iterations, budget_s=2)
        rate = moved / took / 1e3
        of_copy = rate / found[0]["gb_s"] if found else 1.0
        found.append(
            {"kernel": kernel, "codec": codec and codec.name, "moved_bytes": moved, "time_us": took, "gb_s": rate}
            | {"of_copy": of_copy, "projected": False}
        )

    add("copy", None, 2 * x.nbytes, lambda: comm.xp.copyto(same, x))
    for codec in codecs:
        wire = codec.encode(x)
        add("encode", codec, x.nbytes + wire.nbytes, lambda c=codec, w=wire: c.encode(x, out=w))
        add("decode", codec, wire.nbytes + decoded.nbytes, lambda c=codec, w=wire: c.decode(w, out=decoded))
    return found


def lines(kernels: list[Row]) -> list[str]:
    """The table; nothing without a GPU."""
    if not kernels:
        return []
    title = f"# kernels on {MIB} MiB of float16; of_copy: their bandwidth over that of a copy in this run"
    return ["#", title, TABLE.heading(), *map(TABLE.line, kernels)]
