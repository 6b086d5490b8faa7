"""The sum over four ranks by several codecs: bytes sent, and the error beside what the codec promises.

    python examples/all_reduce.py                  the ranks are threads of this process
    mpirun -n 4 python examples/all_reduce.py      the ranks are processes

Start it in the repository's folder.
"""

import numpy as np

import cutpq as cq
from cutpq.array import to_numpy

CODECS = ("mxfp8-e4m3", "mxfp6-e2m3", "e2m2-b16", "mxfp4", "int3-b8")


def main(comm: cq.Communicator) -> None:
    """One rank: its numbers are added to those of the others, and the error of the sum is measured."""
    x = comm.xp.asarray(np.random.default_rng(comm.rank).standard_normal(1 << 17).astype(np.float16))
    plain = cq.all_reduce(x, comm).astype("float32")
    say = print if comm.rank == 0 else lambda *line: None
    say(f"# {comm.size} ranks, {x.nbytes} bytes each")
    say("     codec  bits bytes_sent rms_error max_error allowed_there")
    for name in CODECS:
        codec = cq.codec(name)
        comm.reset_sent()
        total = cq.all_reduce(x, comm, codec=codec, algo="twoshot")
        sent = comm.sent_bytes
        error = to_numpy(abs(total.astype("float32") - plain))
        # Every term is rounded once, then their sum; 1e-3 covers float16's rounding of what is compared.
        terms = comm.all_reduce(codec.bound(x).astype("float32"))
        allowed = to_numpy(terms + codec.bound(abs(plain) + terms) + 1e-3 * (1 + abs(plain)))
        assert (error <= allowed).all()
        at, rms = error.argmax(), np.sqrt((error**2).mean())
        say(f"{name:>10} {codec.bits:5} {sent:10} {rms:9.4f} {error[at]:9.4f} {allowed[at]:13.4f}")


if __name__ == "__main__":
    comm = cq.init()
    cq.run_threads(4, main, xp=comm.xp) if comm.size == 1 else main(comm)
