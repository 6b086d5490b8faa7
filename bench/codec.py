"""Codecs alone: size, noise and speed of encode and decode on one core.

python bench/codec.py                   the named formats
python bench/codec.py mxfp4 int4-b8     these codecs
python bench/codec.py --options         outlier columns and rotation

bits, ratio     on the wire, for each element and against 16
sqnr_*          signal to noise in dB: of normal data, of Laplace-distributed data; `cols` is with one column in a
                hundred twenty times larger
encode, decode  MB of float16 data per second, median
check           the wire has the stated size, and every element is within the codec's stated bound
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator

import numpy as np
from harness.report import Column, Table, header, time_us, write_json

from cutpq.codecs.codec import Codec, codec
from cutpq.ranks.alone import SelfCommunicator

NAMED = (
    "mxint8",
    "mxfp8-e4m3",
    "mxfp8-e5m2",
    "mxfp6-e2m3",
    "mxfp6-e3m2",
    "e2m2",
    "int4-b8",
    "int4-float16",
    "nvfp4",
    "mxfp4",
    "e2m1-even",
    "e2m1-b16-e5m0-even",
    "e1m1-b8",
    "int2-b8",
)
OPTIONS = ("mxfp4", "int4", "int3", "nvfp4")
WIDTH = 4096  # columns of the test data
OUTLIERS, FACTOR = 128, 20  # one column in OUTLIERS is FACTOR times larger

TABLE = Table(
    (
        Column("codec", "codec", 20),
        Column("bits", "bits", 7, ".4g"),
        Column("ratio", "ratio", 6, ".2f"),
        Column("normal", "sqnr_normal_dB", 14, ".2f"),
        Column("laplace", "sqnr_laplace_dB", 15, ".2f"),
        Column("encode", "encode_MB/s", 11, ".0f"),
        Column("decode", "decode_MB/s", 11, ".0f"),
        Column("check", "check", 5),
    )
)
OPTIONS_TABLE = Table(
    (
        Column("codec", "codec", 26),
        Column("bits", "bits", 6, ".3f"),
        Column("normal", "normal", 7, ".2f"),
        Column("laplace", "laplace", 7, ".2f"),
        Column("normal_cols", "normal_cols", 11, ".2f"),
        Column("laplace_cols", "laplace_cols", 12, ".2f"),
        Column("check", "check", 5),
    )
)


def test_data(rows: int) -> dict[str, np.ndarray]:
    """(rows, WIDTH) float16 by name."""
    rng = np.random.default_rng(0)
    normal, laplace = rng.standard_normal((rows, WIDTH)), rng.laplace(size=(rows, WIDTH))
    factor = np.where(large_columns(), FACTOR, 1)
    every = {"normal": normal, "laplace": laplace, "normal_cols": normal * factor, "laplace_cols": laplace * factor}
    return {name: x.astype(np.float16) for name, x in every.items()}


def large_columns() -> np.ndarray:
    """(WIDTH,) bool, spread so that blocks have none or one."""
    return np.arange(WIDTH) % OUTLIERS == 37


def measure(c: Codec, data: dict[str, np.ndarray], iterations: int) -> dict[str, object]:
    """A row: noise on every array; speed on the normal one, unless iterations is 0."""
    row: dict[str, object] = {"codec": c.name, "bits": c.bits, "ratio": c.ratio}
    passed = True
    for name, x in data.items():
        wire = c.encode(x)
        exact = x.astype(np.float64).ravel()
        error = np.abs(c.decode(wire) - exact)
        row[name] = 10 * math.log10((exact**2).sum() / (error**2).sum())
        passed &= wire.size * 8 == c.bits * x.size and bool((error <= c.bound(x)).all())
    if iterations:
        x, comm = data["normal"], SelfCommunicator()
        wire = c.encode(x)
        row["encode"] = x.nbytes / time_us(lambda: c.encode(x), comm, iterations, budget_s=1).time_us
        row["decode"] = x.nbytes / time_us(lambda: c.decode(wire), comm, iterations, budget_s=1).time_us
    return {**row, "check": "ok" if passed else "FAIL"}


def with_options(names: list[str]) -> Iterator[Codec]:
    """Each codec plain, with its outlier columns apart, rotated, and both."""
    for name in names:
        for rotate in (False, True):
            yield codec(name, rotate=rotate)
            yield codec(name, rotate=rotate, outliers=large_columns())


def main() -> int:
    """Measure, print the table, write what was asked for; 1 where a check fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("codecs", nargs="*", help="names of codecs")
    parser.add_argument("--options", action="store_true", help="outlier columns and rotation instead of speed")
    parser.add_argument("--mib", type=int, default=4, help="MiB of float16 data (4)")
    parser.add_argument("-n", "--iters", type=int, default=20, help="iterations of each measurement (20)")
    parser.add_argument("--json", metavar="FILE", help="also write a line a row")
    asked = parser.parse_args()

    names = asked.codecs or list(OPTIONS if asked.options else NAMED)
    table = OPTIONS_TABLE if asked.options else TABLE
    data = test_data(asked.mib * 2**19 // WIDTH)
    if not asked.options:
        data = {name: data[name] for name in ("normal", "laplace")}
    print("\n".join([*header(SelfCommunicator()), table.heading()]))
    rows = []
    for c in with_options(names) if asked.options else map(codec, names):
        rows.append(measure(c, data, 0 if asked.options else asked.iters))
        print(table.line(rows[-1]), flush=True)
    if asked.json:
        write_json(asked.json, rows)
    return 0 if all(row["check"] == "ok" for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
