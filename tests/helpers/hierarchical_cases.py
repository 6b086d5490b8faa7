"""What a hierarchical sum must do on every backend, as cases that each rank runs, on nodes that CUTPQ_NODES pretends.

By threads in test_hierarchical.py, and there by mpirun:
CUTPQ_NODES=0,0,1 PYTHONPATH=bench mpirun -n 3 python tests/helpers/hierarchical_cases.py
"""

import numpy as np
from assertions import assert_bounded, assert_exact
from compressed_cases import ROUNDOFF, SIZES, agree, all_reduce, term, terms

import cutpq as cq
from cutpq.array import to_numpy
from cutpq.codecs.codec import codec
from cutpq.cost.nodes import CABLES, Nodes, cable_sent, choose_shots, lane_shares
from cutpq.ops.gather import rmsnorm_gather
from cutpq.ranks.init import init

CODECS = ("mxfp4", "mxfp8-e5m2", "nvfp4", "e2m2-b16-e5m0-rceil", "int4-b8")


def shots_of(comm, n, c):
    """What the sum takes between nodes; the cable is auto's default."""
    return choose_shots(n, Nodes.of(comm.node_of), c, CABLES["eth-100g"])


def rounding(total, dtype):
    return total.astype(dtype).astype(np.float32)


def node_sums(xs, nodes):
    """The sum of each node, float32, in rank order."""
    sums = []
    for ranks in nodes.ranks:
        total = xs[ranks[0]].astype(np.float32)
        for rank in ranks[1:]:
            total = total + xs[rank].astype(np.float32)
        sums.append(total)
    return sums


def expected(xs, nodes, c, shots):
    """The result by its definition, in one process."""
    sums = node_sums(xs, nodes)
    if c is not None and shots == "twoshot":
        return roundtrip(sum_of_owners(sums, nodes, c), c).astype(xs[0].dtype)
    sent = [rounding(s, xs[0].dtype) if c is None else roundtrip(s, c) for s in sums]
    return added(sent).astype(xs[0].dtype)


def roundtrip(x, c):
    return c.decode(c.encode(x)).reshape(x.shape)


def added(terms):
    total = terms[0]
    for one in terms[1:]:
        total = total + one
    return total


def sum_of_owners(sums, nodes, c):
    """In two shots, of the part of each lane that a node owns: the other nodes' terms, encoded, then its own, exact."""
    sent, owned = [roundtrip(s, c) for s in sums], owner_of_each(sums[0].size, nodes, c).reshape(sums[0].shape)
    total = np.zeros_like(sums[0])
    for node, own in enumerate(sums):
        of_all = added([*sent[:node], *sent[node + 1 :]]) + own
        total = np.where(owned == node, of_all, total)
    return total


def owner_of_each(n, nodes, c):
    """The node that owns each element: of every lane each node has a part, in order."""
    parts = [part for lane in lane_shares(c.padded(n), nodes, c, "twoshot") for part in lane]
    return np.repeat(np.arange(len(parts)) % nodes.count, parts)[:n]


def every_size_is_right_and_equal_on_all_ranks(comm):
    nodes = Nodes.of(comm.node_of)
    for n in SIZES:
        for name in (None, *CODECS):
            c = name and codec(name)
            y = all_reduce(term(comm.rank, n), comm, c, "hierarchical")
            agree(y, comm)
            want = expected(terms(comm.size, n), nodes, c, c and shots_of(comm, n, c))
            assert_exact(y + np.float16(0), want + np.float16(0))


def every_dtype_and_shape(comm):
    nodes = Nodes.of(comm.node_of)
    for dtype in ROUNDOFF:
        for shape in (), (3, 5, 7), (2, 0, 4):
            for c in (None, codec("mxint8")):
                y = all_reduce(term(comm.rank, shape, dtype), comm, c, "hierarchical")
                assert (y.dtype, y.shape) == (dtype, shape)
                want = expected(terms(comm.size, shape, dtype), nodes, c, c and shots_of(comm, int(np.prod(shape)), c))
                assert_exact(y + np.dtype(dtype).type(0), want + dtype.type(0))


def errors_are_within_the_stated_bound(comm):
    """In one shot every node's sum is encoded once; in two shots all but the owner's, and the whole sum once more.

    There is no other error but float32's and x's.
    """
    nodes = Nodes.of(comm.node_of)
    for name in CODECS:
        c = codec(name)
        xs = terms(comm.size, 500)
        exact = np.sum([x.astype(np.float64) for x in xs], axis=0)
        sums = node_sums(xs, nodes)
        bounds = np.array([c.bound(s) for s in sums])
        limit = np.sum(bounds, axis=0)
        if shots_of(comm, 500, c) == "twoshot":
            limit -= bounds[owner_of_each(500, nodes, c), np.arange(500)]
            limit += c.bound(sum_of_owners(sums, nodes, c))
        limit += 2 * comm.size * 2.0**-24 * np.sum([np.abs(x.astype(np.float64)) for x in xs], axis=0)
        y = all_reduce(xs[comm.rank], comm, c, "hierarchical")
        assert_bounded(y.astype(np.float64), exact, limit + 2.0**-11 * (np.abs(exact) + limit))


def cable_bytes_are_the_published_ones(comm):
    nodes = Nodes.of(comm.node_of)
    for n in SIZES:
        for name in (
            ("mxfp4", "int4-b8") if comm.backend == "nccl" else (None, "mxfp4", "int4-b8")
        ):  # NCCL adds by rings
            c = name and codec(name)
            for algo in ("hierarchical", *(("oneshot", "twoshot") if c else ("plain",))):
                comm.reset_sent()
                all_reduce(term(comm.rank, n), comm, c, algo)
                assert comm.cable_bytes == cable_sent(
                    algo, n, 2, nodes, comm.rank, c, shots_of(comm, n, c) if c else ""
                )
                assert comm.cable_bytes <= comm.sent_bytes


def one_column_in_float16(comm):
    """Outliers: shares end where rows do."""
    nodes, mask = Nodes.of(comm.node_of), np.arange(48) % 24 == 5
    c = codec("mxfp4", rotate=True, outliers=mask)
    for rows in (1, 2, 7):
        xs = [(x * np.where(mask, 20, 1)).astype(np.float16) for x in terms(comm.size, (rows, 48))]
        y = all_reduce(xs[comm.rank], comm, c, "hierarchical")
        agree(y, comm)
        assert_exact(y, expected(xs, nodes, c, shots_of(comm, 48 * rows, c)))


def a_block_with_nan_is_nan_everywhere(comm):
    x = term(comm.rank, 200, np.float32)
    if comm.rank == comm.size - 1:
        x[100] = np.inf
    y = all_reduce(x, comm, "e2m1-b8", "hierarchical")
    agree(y, comm)
    assert np.isnan(y[96:104]).all()
    assert not np.isnan(np.delete(y, np.s_[96:104])).any()


def fused_end_has_the_bits_of_its_steps(comm):
    xp, M, K = comm.xp, 3, 256
    rng = np.random.default_rng(23)
    residual, weight = (xp.asarray(rng.standard_normal(shape).astype(np.float16)) for shape in ((M, K), (K,)))
    perm = xp.asarray(rng.permutation(K).astype(np.int32))
    for c in (None, "mxfp4"):
        x = xp.asarray(term(comm.rank, (M, K)))
        total = cq.all_reduce(x, comm, c, "hierarchical").astype(np.float32)
        want = (residual.astype(np.float32) + total).astype(np.float16)
        got = residual.copy()
        y = cq.all_reduce_rmsnorm(x, comm, got, weight, perm, codec=c, algo="hierarchical")
        assert_exact(to_numpy(got), to_numpy(want))
        assert_exact(to_numpy(y), to_numpy(rmsnorm_gather(want, weight, perm, 1e-5)))


def captured_sums_replay(comm):
    """A graph of a sum gives the bits of the same sum called, whatever numbers are in its array by then."""
    xp, n = comm.xp, 1000
    for c in (None, "mxfp4"):
        with xp.cuda.Stream(non_blocking=True) as stream:
            x = xp.asarray(term(comm.rank, n))
            cq.all_reduce(x, comm, c, "hierarchical")  # splits the groups, which a graph cannot hold
            stream.begin_capture()
            y = cq.all_reduce(x, comm, c, "hierarchical")
            graph = stream.end_capture()
            for seed in range(3):
                x.set(term(comm.rank + comm.size * seed, n))
                y.fill(np.nan)
                graph.launch(stream)
                stream.synchronize()
                assert_exact(to_numpy(y), to_numpy(cq.all_reduce(x, comm, c, "hierarchical")))
                agree(to_numpy(y), comm)


CASES = {
    case.__name__: case
    for case in (
        every_size_is_right_and_equal_on_all_ranks,
        every_dtype_and_shape,
        errors_are_within_the_stated_bound,
        cable_bytes_are_the_published_ones,
        one_column_in_float16,
        a_block_with_nan_is_nan_everywhere,
        fused_end_has_the_bits_of_its_steps,
    )
}


if __name__ == "__main__":
    world = init()
    if world.backend == "nccl":
        CASES[captured_sums_replay.__name__] = captured_sums_replay
    for name, case in CASES.items():
        case(world)
        world.barrier()
        if world.rank == 0:
            print(f"passed {name}", flush=True)
