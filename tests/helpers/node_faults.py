"""What goes wrong between nodes, as jobs that test_nodes.py runs over two nodes: node_faults.py NAME."""

import os
import signal
import socket
import sys
import time

import numpy as np

import cutpq as cq

x = np.ones(4096, np.float16)


def sums(comm, times=1, codec="mxfp4"):
    for _ in range(times):
        y = cq.all_reduce(x, comm, codec, "hierarchical")
        assert (y == comm.size).all()


def one_is_killed(comm):
    sums(comm)
    if comm.rank == comm.size - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    sums(comm, 1000)


def cable_is_cut(comm):
    if comm.rank == 0:
        print("summing", flush=True)
    while True:
        sums(comm)


def another_codec(comm):
    sums(comm, codec="mxfp8-e5m2" if socket.gethostname() == "node1" else "mxfp8-e4m3")


def one_is_slow(comm, by_s=2):
    sums(comm)
    if comm.rank == comm.size - 1:
        time.sleep(by_s)
    sums(comm)
    print(f"rank {comm.rank} of {socket.gethostname()} is done", flush=True)


def all_are_well(comm):
    one_is_slow(comm, by_s=0)


if __name__ == "__main__":
    globals()[sys.argv[1]](cq.init())
