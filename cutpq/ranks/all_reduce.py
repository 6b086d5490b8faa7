"""The sum of an array over all ranks: plain, or with its payload in a block codec.

algo      what travels, and how often it is rounded
plain     x itself; once (see Communicator.all_reduce)
oneshot   every rank's wire to every rank, all of which decode and add: each term once, the sum once
twoshot   the wire of each share to its owner, who decodes, adds and encodes; then that wire to every rank:
          each term once, the sum twice
hierarchical  x inside each node, wires between nodes (hierarchical.py): a node's sum at most once, the sum up to twice

The owner of a share takes its sum from its own wire, as all others do, and everyone adds in rank order in
float32: the result is equal on all ranks bit for bit, for every codec, size and number of ranks. Where a rank's
block has NaN or Inf, the block of the result is NaN.
"""

from __future__ import annotations

import numpy as np

from ..array import Array, array_module, bfloat16, check_array, once_per_kind, round_to
from ..codecs import launch
from ..codecs.codec import Codec
from ..codecs.codec import codec as find_codec
from ..ops import residual_norm
from ..trace import span
from . import auto, hierarchical
from .communicator import Communicator, in_words
from .sums import add_rows
from .wires import decode_sum, flat, oneshot, twoshot

ALGOS = ("auto", "plain", "oneshot", "twoshot", "hierarchical")


def all_reduce(
    x: Array,
    comm: Communicator,
    codec: str | Codec | None = None,
    algo: str = "auto",
    out: Array | None = None,
) -> Array:
    """out = sum over ranks of x, added in rank order in float32, in x's dtype; equal on all ranks bit for bit.

    x      any shape and size, the same on all ranks; NumPy or CuPy, as comm takes it. For "oneshot" and
           "twoshot" float16, bfloat16 or float32; for a codec with outliers whole rows of their width
    codec  of the payload: a Codec or a name (see codecs/names.py), the same on all ranks; None sends x as it is
    algo   "plain" (whatever the codec), "oneshot", "twoshot", or "auto": what is predicted to be the quickest
           (auto.py). Without a codec "twoshot" is "plain", and so is "auto" on one node. "hierarchical" is for ranks
           on several nodes (hierarchical.py), and "plain" on one
    out    x's shape and dtype; may be x

    Sends, by comm.sent_bytes: "plain" what Communicator.all_reduce says, "oneshot" oneshot_sent and "twoshot"
    twoshot_sent of cost/all_reduce.py. The error of a oneshot sum is at most the sum of the ranks' codec.bound(x), that
    of a twoshot one at most codec.bound of that sum more, besides the roundings of float32 and of x's dtype. For a
    hierarchical sum the terms are the sums of the nodes.

    Raises ValueError for an unknown codec or algo, and on a rank whose shape, dtype, codec or algo differ from
    rank 0's; TypeError for another dtype.
    """
    array_module(x, out)
    if out is not None:
        check_array("out", out, x.shape, x.dtype)
    chosen = _chosen(codec, algo)
    with comm.calling(f"all_reduce of {_call(in_words(x), chosen, algo)}"):
        total = _reduce(x, comm, chosen, _agreed(x, comm, chosen, algo))
    if out is None:
        return total
    out[...] = total
    return out


def all_reduce_rmsnorm(
    x: Array,
    comm: Communicator,
    residual: Array,
    weight: Array,
    perm: Array,
    epsilon: float = 1e-5,
    *,
    codec: str | Codec | None = None,
    algo: str = "auto",
) -> Array:
    """residual += all_reduce(x), in place; rmsnorm_gather(residual, weight, perm, epsilon) is returned.

    x         (M, K) float16, bfloat16 or float32; codec and algo as in all_reduce
    residual  (M, K) of x's dtype, changed; weight (K,) of it, in the order of x; perm (K,) int32, the column order
              of the weight that is multiplied next

    The bits are those of the three steps. With kernels and a codec without options the last step of the sum does
    all of it in one pass; after a plain sum one kernel does the rest. Raises as all_reduce and rmsnorm_gather do.
    """
    _check_operands(x, residual, weight, perm)
    chosen = _chosen(codec, algo)
    with span("all_reduce"), comm.calling(f"all_reduce of {_call(in_words(x), chosen, algo)}"):
        algo = _agreed(x, comm, chosen, algo)
        by_peers = comm.sum_by_kernel(x, chosen, algo) if algo in ("oneshot", "twoshot") and chosen else None
        if by_peers is not None:
            return residual_norm.of_checked(by_peers, residual, weight, perm, epsilon)
        if chosen is not None and algo != "plain" and launch.takes_rows(chosen, residual):
            wires, shares = _exchange(x, comm, chosen, algo)
            return launch.decode_sum_rmsnorm(wires, chosen, residual, weight, perm, epsilon, shares)
        total = _reduce(x, comm, chosen, algo)
    with span("norm"):
        return residual_norm.of_checked(total, residual, weight, perm, epsilon)


@once_per_kind
def _check_operands(x: Array, residual: Array, weight: Array, perm: Array) -> None:
    check_array("x", x, ("M", "K"), np.float16, bfloat16, np.float32)
    check_array("residual", residual, x.shape, x.dtype)
    residual_norm.check_operands(None, residual, weight, perm)
    array_module(x, residual)


def _chosen(codec: str | Codec | None, algo: str) -> Codec | None:
    if algo not in ALGOS:
        raise ValueError(f"algo {algo!r} is not one of {', '.join(ALGOS)}")
    return None if codec is None else find_codec(codec)


def _agreed(x: Array, comm: Communicator, codec: Codec | None, algo: str) -> str:
    """The algorithm of this call, after a check that all ranks call alike; auto is resolved."""
    one_node = comm.one_node
    if codec is not None:
        _check_agreement(x, comm, codec, algo)
    across = not one_node and x.dtype in (np.float16, bfloat16, np.float32)  # only these have a hierarchical sum
    if algo == "auto" and (codec is not None or across):
        algo = auto.choose(x, comm, codec)
    return "plain" if algo == "hierarchical" and one_node else algo


def _reduce(x: Array, comm: Communicator, codec: Codec | None, algo: str) -> Array:
    if algo in ("auto", "plain") or (codec is None and algo == "twoshot"):
        return comm.all_reduce(x)
    if x.dtype not in (np.float16, bfloat16, np.float32):
        raise TypeError(f"{algo} adds float16, bfloat16 or float32, got {x.dtype}; use .astype, or algo='plain'")
    by_kernel = comm.sum_by_kernel(x, codec, algo)
    if by_kernel is not None:
        return by_kernel
    by_kernels = codec is not None and launch.takes(codec, array_module(x), x.size)
    if algo == "hierarchical" and not by_kernels:
        return hierarchical.all_reduce(x, comm, codec)
    if codec is None:
        return round_to(add_rows(comm.all_gather(flat(x))), x.dtype).reshape(x.shape)
    wires, shares = _exchange(x, comm, codec, algo)
    if by_kernels:
        return launch.decode_sum(wires, codec, x.size, x.dtype, shares).reshape(x.shape)
    return decode_sum(wires, codec, x.size, shares, x.dtype)[: x.size].reshape(x.shape)


def _exchange(x: Array, comm: Communicator, codec: Codec, algo: str) -> tuple[Array, int]:
    """The wires whose decoded sum is the result, (terms, bytes), and how many shares there are in each."""
    if algo == "hierarchical":
        return hierarchical.exchange(flat(x), comm, codec)
    return (oneshot if algo == "oneshot" else twoshot)([flat(x)], comm, codec)


def _check_agreement(x: Array, comm: Communicator, codec: Codec, algo: str) -> None:
    """Raise ValueError where shape, dtype, codec or algo differ from rank 0's: their wires may have equal sizes.

    Not where ranks meet only on their GPUs: there failures/watch.py compares the calls.
    """
    if comm.size == 1 or not comm.waits_on_host:
        return
    mine = (in_words(x), codec, algo)
    first = comm.bcast(mine)
    if mine != first:
        raise ValueError(
            f"rank {comm.rank} calls all_reduce of {_call(*mine)}, but rank 0 of {_call(*first)}: "
            f"their call {comm.calls}"
        )


def _call(array: str, codec: Codec | None, algo: str) -> str:
    if codec is None:
        return f"{array}, {algo if algo in ('oneshot', 'hierarchical') else 'plain'}"
    return f"{array} by {codec.name}, {algo}"
