"""One MLP in all five schemes: what each sends, and that all agree.

    python examples/mlp.py                  one rank, nothing is sent
    mpirun -n 4 python examples/mlp.py

Start it in the repository's folder.
"""

import numpy as np

import cutpq as cq

comm = cq.init()  # one process, or the ranks that mpirun started
ckpt = cq.open_checkpoint("tests/data/tiny-llama")  # GPTQ, AWQ or compressed-tensors
naive = cq.Mlp.from_checkpoint(ckpt, layer=0, comm=comm, scheme="naive")
aware = cq.Mlp.from_checkpoint(ckpt, layer=0, comm=comm, scheme="tp-aware")
small = cq.Mlp.from_checkpoint(ckpt, layer=0, comm=comm, scheme="tp-aware", codec="mxfp4", algo="twoshot")

x = comm.xp.asarray(np.random.default_rng(0).standard_normal((16, 256)).astype(np.float16))
assert comm.xp.allclose(aware(x), naive(x), atol=0.05)  # the same numbers, without the all_gather
y = small(x)  # what the ranks send each other has 4.25 bits a value; y is the same on all of them

want = naive(x).astype("float32")
if comm.rank == 0:
    print("    scheme codec bytes_sent  difference from naive, relative")
for scheme in cq.SCHEMES:
    for codec in (None, "mxfp4"):
        mlp = cq.Mlp.from_checkpoint(ckpt, layer=0, comm=comm, scheme=scheme, codec=codec, algo="twoshot")
        comm.reset_sent()
        difference = mlp(x).astype("float32") - want
        if comm.rank == 0:
            relative = float(((difference**2).sum() / (want**2).sum()) ** 0.5)
            print(f"{scheme:>10} {codec or '-':>5} {comm.sent_bytes:10} {relative:22.4f}")
