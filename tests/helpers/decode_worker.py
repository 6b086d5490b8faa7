"""Ranks of a decode test, each on a GPU and a stream of its own: `mpirun -n 2 python decode_worker.py MODEL CODEC`.

Every rank exits with status 1 where a replayed graph gives other bits, or counts other bytes, than the eager path.
"""

import sys

import cupy
import numpy as np

import cutpq as cq
from cutpq.model import decode_step

STEPS, BUCKETS = 12, 2


def main(folder: str, codec: str) -> None:
    decode_step.FIRST_BUCKET = 8
    comm = cq.init()
    options = {} if codec == "none" else {"codec": codec, "algo": "twoshot"}
    with cupy.cuda.Stream(non_blocking=True):
        model = cq.load_model(folder, comm, dtype="float16", **options)
        eager, captured = (model.new_cache(2, 32) for _ in range(2))
        for cache in (eager, captured):
            model([[1, 2, 3], [4]], cache)
        for tokens in np.random.default_rng(5).integers(0, 101, (STEPS, 2)):
            comm.reset_sent()
            want = model(tokens[:, None], eager).get()
            sent = comm.sent_bytes
            comm.reset_sent()
            got = model.decode(tokens, captured).get()
            assert got.tobytes() == want.tobytes(), f"rank {comm.rank}: other bits at {eager.lengths}"
            assert comm.sent_bytes == sent, f"rank {comm.rank}: {comm.sent_bytes} bytes sent, not {sent}"
        assert len(model._steps[captured]) == BUCKETS, "the graphs were captured"
        comm.barrier()


if __name__ == "__main__":
    main(*sys.argv[1:])
