"""Tensor-parallel linear layers over act-ordered weights: the five schemes.

A column-parallel layer cuts its output features; its own act-order is a local gather of x, which every rank holds.
A row-parallel layer cuts its input features, and there act-order hurts: sorted into groups, a rank's rows want input
features that other ranks computed. P is the stable permutation that sorts the groups, b the bounds of the ranks:

    scheme       rows on rank r             what happens to x                      what the rank pays
    unordered    b[r] .. b[r+1] of W        nothing; scales are looked up per row  scattered scales of all groups
    naive        b[r] .. b[r+1] of W[P]     all_gather, take columns P[b[r]..]     a collective of M x K
    all-to-all   b[r] .. b[r+1] of W[P]     ranks send just the columns needed     1/tp of naive's bytes
    local        b[r] .. b[r+1] of W,       own columns are permuted               scales of all groups
                 then sorted
    tp-aware     b[r] .. b[r+1] of W[P]     nothing: the layer before produces     nothing
                                            columns P[b[r]..b[r+1]]

`tp-aware` is Algorithm 3 of arXiv 2402.04925 and `naive` its Algorithm 2: they multiply the same numbers in the same
order, and their results are equal bit for bit; of cuBLAS, which multiplies from configs.DEQUANT_FROM tokens on, nobody
knows the order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ..array import Array, array_module, check_array, move, to_numpy
from ..codecs.codec import Codec
from ..ops import formulas as ref
from ..ops.gather import gather_columns
from ..ops.gemm import gated_matmul, matmul, prepare
from ..ranks.all_reduce import all_reduce
from ..ranks.init import Communicator
from ..trace import span
from ..weights.pack import PackedWeight, can_interleave, interleave
from ..weights.permutation import invert, sort_groups, sorting_permutation
from ..weights.schemes import GROUP_ALIGNED, SCHEMES
from ..weights.shard import default_bounds, even_bounds, group_bounds
from ..weights.weight import PlainWeight, QuantWeight, Weight
from .source import Index, Source, take


class ColumnParallelLinear:
    """y = x @ W[:, columns] + bias[columns]: every rank has all of x and makes its own output features.

    sources  a weight, or several that take the same x; their outputs stand side by side ([gate | up])
    columns  this rank's columns in the order wanted: the same of each source, or a list with those of each;
             default: an even share of each
    sort     False leaves the rows in disk order (scheme `unordered`)
    activation  one of ref.ACTIVATIONS: then y = act(x @ W) of one source, act(x @ gate) * (x @ up) of two

    Sources in the same order become one product; where their `g_idx` differ, each gets its own gather of x.
    """

    def __init__(
        self,
        sources: Source | Sequence[Source],
        comm: Communicator,
        columns: Index | list[Index] | None = None,
        *,
        sort: bool = True,
        activation: str | None = None,
    ):
        sources = [sources] if isinstance(sources, Source) else list(sources)
        if columns is None:
            columns = [_even_share(source.N, comm) for source in sources]
        elif not isinstance(columns, list):
            columns = [columns] * len(sources)
        self.activation = activation  # of what `product` leaves to do
        self.product: Callable[..., Array] = matmul
        weights: Sequence[Weight] = [take(source, columns=own) for source, own in zip(sources, columns, strict=True)]
        # The kernel that makes the sums activates them; with gate and up side by side it gates them as well.
        if activation is not None and can_interleave(weights):
            weights, self.activation = [interleave(*weights)], None
            self.product = partial(gated_matmul, activation=activation)
        elif activation is not None and len(weights) == 1:
            self.activation, self.product = None, partial(matmul, activation=activation)
        else:
            weights = _merge(weights)
        self.parts: list[tuple[Weight | PackedWeight, Array | None]] = []
        for weight in weights:
            perm = None
            if sort and isinstance(weight, QuantWeight) and not weight.is_ordered:
                weight, perm = sort_groups(weight)
                perm = move(perm, comm.xp)
            self.parts.append((prepare(weight, comm.xp), perm))

    @property
    def order(self) -> Array | None:
        """perm (K,) int32 where all sources want x[:, perm]; None where they differ, or want the disk's order.

        Who writes x may write it in this order and spare the gather.
        """
        return self.parts[0][1] if len(self.parts) == 1 else None

    def __call__(self, x: Array, *, in_order: bool = False) -> Array:
        """x (M, K), its columns in disk order or in `order` -> (M, columns of all sources), or of one if activated."""
        check_array("x", x, ("M", self.parts[0][0].K))
        sorted_already = in_order and self.order is not None
        ys = []
        for weight, perm in self.parts:
            if perm is None or sorted_already:
                x_sorted = x
            else:
                with span("permute"):
                    x_sorted = gather_columns(x, perm)
            with span("gemm 1"):
                ys.append(self.product(x_sorted, weight))
        y = ys[0] if len(ys) == 1 else array_module(x).concatenate(ys, axis=1)
        if self.activation is None:
            return y
        return ref.activate(self.activation, *array_module(x).split(y, 2, axis=1))


class RowParallelLinear:
    """y = sum over ranks of x_rank @ W[rows of rank], plus bias: the same array on every rank, bit for bit.

    source    the whole weight
    scheme    one of SCHEMES, see above
    x_bounds  (size + 1,) bounds of the features that each rank brings as x, in disk order; default: the bounds of
              the groups, or an even share where there are more ranks than groups. Not for `tp-aware`.
    codec     of the all_reduce, and its algo: see all_reduce

    The ranks' partial sums are rounded to x's dtype, added in float32 in rank order and rounded again.
    Rank 0 alone adds the bias, before its rounding. Raises ValueError for an unknown scheme, and for a scheme that
    needs whole groups on a rank with more ranks than groups.
    """

    def __init__(
        self,
        source: Source,
        comm: Communicator,
        scheme: str = "local",
        x_bounds: Sequence[int] | None = None,
        *,
        codec: str | Codec | None = None,
        algo: str = "auto",
    ):
        if scheme not in SCHEMES:
            raise ValueError(f"scheme {scheme!r} is not one of {', '.join(SCHEMES)}")
        if scheme == "tp-aware" and x_bounds is not None:
            raise ValueError("scheme 'tp-aware' decides itself which features a rank brings: leave x_bounds out")
        self.comm, self.scheme, self.codec, self.algo = comm, scheme, codec, algo
        g_idx = to_numpy(source.g_idx)
        x_cut = default_bounds(g_idx, comm.size) if x_bounds is None else _check_bounds(x_bounds, source.K, comm.size)
        in_disk_order = slice(int(x_cut[comm.rank]), int(x_cut[comm.rank + 1]))
        self.prepare: Callable[[Array], Array] | None = None  # x as it arrives -> x as the weight's rows want it
        self.x_columns: Index = in_disk_order
        rows: Index = in_disk_order
        if scheme in GROUP_ALIGNED:
            cut = group_bounds(g_idx, comm.size)
            needs = np.split(sorting_permutation(g_idx), cut[1:-1])
            rows = needs[comm.rank]
            if scheme == "tp-aware":
                self.x_columns = rows
            else:
                exchange = _AllGather if scheme == "naive" else _AllToAll
                self.prepare = exchange(comm, x_cut, needs)
        weight = take(source, rows=rows)
        if scheme == "local" and isinstance(weight, QuantWeight) and not weight.is_ordered:
            weight, perm = sort_groups(weight)
            self.prepare = _Permute(move(perm, comm.xp))
        if comm.rank != 0:
            weight = replace(weight, bias=None)
        self.weight = prepare(weight, comm.xp)

    def __call__(self, x: Array) -> Array:
        """x (M, features of this rank): the disk-order columns `x_columns` -> y (M, N), summed over the ranks."""
        y = self.partial(x)
        with span("all_reduce"):
            return all_reduce(y, self.comm, self.codec, self.algo)

    def partial(self, x: Array) -> Array:
        """This rank's term of the sum: what is left to do is all_reduce, or all_reduce_rmsnorm."""
        width = self.weight.K if isinstance(self.x_columns, np.ndarray) else self.x_columns.stop - self.x_columns.start
        check_array("x", x, ("M", width))
        if self.prepare is not None:
            x = self.prepare(x)
        with span("gemm 2"):
            return matmul(x, self.weight)


class _Permute:
    """x[:, perm], columns that this rank already has."""

    def __init__(self, perm: Array):
        self.perm = perm

    def __call__(self, x: Array) -> Array:
        with span("permute"):
            return gather_columns(x, self.perm)


# The two exchanges send features as rows (x transposed), so that what one rank sends another is contiguous and
# choosing features is the same single copy as transposing them.


class _AllGather:
    """Every rank's features to every rank; each then keeps those of its own rows (`naive`)."""

    def __init__(self, comm: Communicator, x_cut: np.ndarray, needs: list[np.ndarray]):
        self.comm = comm
        self.widths = np.diff(x_cut)
        self.mine = move(needs[comm.rank], comm.xp)

    def __call__(self, x: Array) -> Array:
        M = x.shape[0]
        with span("exchange"):
            every = self.comm.all_gather(x.T.ravel(), [int(w) * M for w in self.widths]).reshape(self.widths.sum(), M)
        with span("permute"):
            return every[self.mine].T


class _AllToAll:
    """Each feature to the one rank whose rows need it (`all-to-all`)."""

    def __init__(self, comm: Communicator, x_cut: np.ndarray, needs: list[np.ndarray]):
        owners = [np.searchsorted(x_cut, need, side="right") - 1 for need in needs]
        sends = [need[owner == comm.rank] - x_cut[comm.rank] for need, owner in zip(needs, owners, strict=True)]
        # What arrives is ordered by sender and within a sender by my rows; `place` puts it back into my rows' order.
        place = invert(np.argsort(owners[comm.rank], kind="stable"))
        self.comm = comm
        self.send_counts = [len(s) for s in sends]
        self.recv_counts = np.bincount(owners[comm.rank], minlength=comm.size).tolist()
        self.sends, self.place = move(np.concatenate(sends), comm.xp), move(place, comm.xp)

    def __call__(self, x: Array) -> Array:
        M = x.shape[0]
        with span("permute"):
            outgoing = x.T[self.sends].ravel()
        with span("exchange"):
            arrived = self.comm.all_to_all(
                outgoing, [n * M for n in self.send_counts], [n * M for n in self.recv_counts]
            )
        with span("permute"):
            return arrived.reshape(len(self.place), M)[self.place].T


def _even_share(N: int, comm: Communicator) -> slice:
    bounds = even_bounds(N, comm.size)
    return slice(bounds[comm.rank], bounds[comm.rank + 1])


def _merge(weights: Sequence[Weight]) -> Sequence[Weight]:
    """The weights as one, columns side by side, where their rows are ordered alike; else as they are."""
    plain = [w for w in weights if isinstance(w, PlainWeight)]
    quantized = [w for w in weights if isinstance(w, QuantWeight)]
    if len(weights) == 1 or len({w.bias is None for w in weights}) > 1:
        return weights
    if len(plain) == len(weights) and len({w.weight.dtype for w in plain}) == 1:
        return [_side_by_side(plain, "weight")]
    first = weights[0]
    alike = all(
        w.bits == quantized[0].bits and w.G == quantized[0].G and bool((w.g_idx == first.g_idx).all())
        for w in quantized
    )
    return [_side_by_side(quantized, "codes", "scales", "zeros")] if alike and not plain else weights


def _side_by_side(weights: Sequence[Any], *arrays: str) -> Any:
    first = weights[0]
    xp = array_module(getattr(first, arrays[0]))
    joined = {name: xp.concatenate([getattr(w, name) for w in weights], axis=-1) for name in arrays}
    bias = None if first.bias is None else xp.concatenate([w.bias for w in weights])
    return replace(first, bias=bias, **joined)


def _check_bounds(bounds: Sequence[int], K: int, tp: int) -> np.ndarray:
    cut = np.asarray(bounds, np.int64)
    if cut.shape != (tp + 1,) or cut[0] != 0 or cut[-1] != K or (np.diff(cut) < 0).any():
        raise ValueError(f"x_bounds must be {tp + 1} ascending numbers from 0 to K={K}, got {list(bounds)}")
    return cut
