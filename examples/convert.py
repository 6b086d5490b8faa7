"""A checkpoint without act-order in its down projections: written, proved, and multiplied by.

    python examples/convert.py DST

Start it in the repository's folder.
"""

import sys

import numpy as np

import cutpq as cq
from cutpq.convert.convert import convert

SRC = "tests/data/tiny-llama"

done = convert(SRC, sys.argv[1])  # writes, reads everything back, proves it; only then does the folder appear
print(f"{sys.argv[1]}: {len(done.sorted)} down projections sorted, {done.nbytes} bytes")

name = done.sorted[0]
old, new = (cq.open_checkpoint(folder).weight(name) for folder in (SRC, sys.argv[1]))
print(f"groups of the first rows of {name}: {old.g_idx[:8]} before, {new.g_idx[:8]} after")

# The whole MLP gives the same bits: sorted when it is loaded, or read as it was written.
comm = cq.init()
x = comm.xp.asarray(np.random.default_rng(0).standard_normal((4, 256)).astype(np.float16))
sorted_now, sorted_before = (
    cq.Mlp.from_checkpoint(cq.open_checkpoint(folder), layer=0, comm=comm, scheme="tp-aware")
    for folder in (SRC, sys.argv[1])
)
assert (sorted_now(x) == sorted_before(x)).all()
print("the MLP of layer 0 gives the same bits from both")
