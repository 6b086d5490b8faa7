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
order, and their results are equal bit for bit. From gemm_config.dequant_from tokens on cuBLAS multiplies, whose order
of summation is not documented: there the two may differ in the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from types import ModuleType
from typing import Any, TypeGuard

import numpy as np

from ..array import Array, array_module, check_array, move, to_numpy
from ..codecs.codec import Codec
from ..ops import formulas as ref
from ..ops.engine.choice import uses_engine
from ..ops.gather import gather_columns
from ..ops.gemm import Prepared, gated_matmul, matmul, prepare
from ..ranks.all_reduce import all_reduce
from ..ranks.communicator import Communicator
from ..trace import span
from ..weights.pack import can_interleave, interleave
from ..weights.permutation import sort_groups, sorting_permutation
from ..weights.schemes import GROUP_ALIGNED, SCHEMES
from ..weights.shard import default_bounds, even_bounds, group_bounds
from ..weights.weight import PlainWeight, QuantWeight, Weight
from .exchange import AllGather, AllToAll, Permute
from .source import Index, Source, WeightInFile, take


class ColumnParallelLinear:
    """y = x @ W[:, columns] + bias[columns]: every rank has all of x and makes its own output features.

    sources     a weight, or several that take the same x; their outputs stand side by side ([gate | up])
    columns     this rank's columns in the order wanted: the same of each source, or a list with those of each;
                default: an even share of each
    sort        False leaves the rows in disk order (scheme `unordered`)
    activation  one of ops.formulas.ACTIVATIONS: then y = act(x @ W) of one source, act(x @ gate) * (x @ up) of two

    Sources whose `g_idx` are equal become one product; where they differ, each gets its own gather of x.
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
        weights: Sequence[Weight] = [take(source, columns=own) for source, own in zip(sources, columns, strict=True)]
        self._multiply: Callable[..., Array] = matmul
        self._unfused_activation: str | None = None
        if activation is None:
            weights = _merge(weights)
        elif len(weights) == 1:
            self._multiply = partial(matmul, activation=activation)
        elif can_interleave(weights):
            engine = uses_engine(comm.xp)  # NumPy works on whole rows: eight columns at a time would cost it more
            weights = _merge(weights) if engine else [interleave(*weights)]
            self._multiply = partial(gated_matmul, activation=activation, side_by_side=engine)
        else:
            weights, self._unfused_activation = _merge(weights), activation
        name = " and ".join(dict.fromkeys(map(_name, sources)))
        self.products = [_sorted_product(weight, comm, sort, name) for weight in weights]

    @property
    def is_fused(self) -> bool:
        """Whether the kernel that multiplies also applies the activation (True without an activation)."""
        return self._unfused_activation is None

    @cached_property
    def perm(self) -> Array | None:
        """(K,) int32 where all products take x[:, perm]; None where they differ, or take x in disk order.

        Whoever writes x may write it in this order, and pass `permuted=True`: that spares the gather.
        """
        return self.products[0].perm if len(self.products) == 1 else None

    def __call__(self, x: Array, *, permuted: bool = False) -> Array:
        """x (M, K) -> (M, columns of all sources), or (M, columns of one source) with an activation.

        permuted  x's columns are already those of x[:, perm]; without effect where `perm` is None

        Raises ValueError for an x of another width.
        """
        is_sorted = permuted and self.perm is not None
        ys = []
        for product in self.products:
            x_sorted = x
            if product.perm is not None and not is_sorted:
                check_array("x", x, ("M", product.weight.K))  # as the product does with an x that is not gathered
                with span("permute"):
                    x_sorted = gather_columns(x, product.perm)
            with span("gemm 1"):
                ys.append(self._multiply(x_sorted, product.weight))
        y = ys[0] if len(ys) == 1 else array_module(x).concatenate(ys, axis=1)
        if self._unfused_activation is None:
            return y
        return ref.activate(self._unfused_activation, *array_module(x).split(y, 2, axis=1))


@dataclass(frozen=True)
class Product:
    """One matrix product of a column-parallel layer: x[:, perm] @ weight, or x @ weight where perm is None."""

    weight: Prepared
    perm: Array | None


def _name(source: Source) -> str:
    """What a warning calls a weight."""
    return source.name if isinstance(source, WeightInFile) else f"a weight of shape ({source.K}, {source.N})"


def _sorted_product(weight: Weight, comm: Communicator, sort: bool, name: str) -> Product:
    perm = None
    if sort and _gains_by_sorting(weight, comm.xp):
        weight, perm = sort_groups(weight)
        perm = move(perm, comm.xp)
    return Product(prepare(weight, comm.xp, name=name), perm)


def _gains_by_sorting(weight: Weight, xp: ModuleType) -> TypeGuard[QuantWeight]:
    """Whether its rows are out of order, and products are quicker with groups sorted.

    Kernels are. The engine for NumPy arrays is not: it looks scales up when it dequantizes, which takes as long for
    rows in any order, and a gather of x would cost it a fiftieth of a prefill.
    """
    return isinstance(weight, QuantWeight) and not weight.is_ordered and not uses_engine(xp)


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
        bounds = default_bounds(g_idx, comm.size) if x_bounds is None else _check_bounds(x_bounds, source.K, comm.size)
        disk_rows = slice(int(bounds[comm.rank]), int(bounds[comm.rank + 1]))
        # x as it arrives -> x as the weight's rows want it; None where these are the same
        self.rearrange: Callable[[Array], Array] | None = None
        self.x_columns: Index = disk_rows
        rows: Index = disk_rows
        if scheme in GROUP_ALIGNED:
            needs = np.split(sorting_permutation(g_idx), group_bounds(g_idx, comm.size)[1:-1])
            rows = needs[comm.rank]
            if scheme == "tp-aware":
                self.x_columns = rows
            else:
                exchange = AllGather if scheme == "naive" else AllToAll
                self.rearrange = exchange(comm, bounds, needs)
        self._width = len(np.arange(source.K)[self.x_columns])
        weight = take(source, rows=rows)
        if scheme == "local" and _gains_by_sorting(weight, comm.xp):
            weight, perm = sort_groups(weight)
            self.rearrange = Permute(move(perm, comm.xp))
        if comm.rank != 0:
            weight = replace(weight, bias=None)
        self.weight = prepare(weight, comm.xp, name=_name(source))

    def __call__(self, x: Array) -> Array:
        """x (M, features of this rank): the disk-order columns `x_columns` -> y (M, N), summed over the ranks.

        Collective. Raises ValueError for an x of another width.
        """
        y = self.partial(x)
        with span("all_reduce"):
            return all_reduce(y, self.comm, self.codec, self.algo)

    def partial(self, x: Array) -> Array:
        """This rank's term of the sum, (M, N): what is left to do is all_reduce, or all_reduce_rmsnorm.

        Under `naive` and `all-to-all` collective. Raises ValueError for an x of another width.
        """
        if self.rearrange is not None:
            check_array("x", x, ("M", self._width))  # as the product does with an x that stays as it is
            x = self.rearrange(x)
        with span("gemm 2"):
            return matmul(x, self.weight)


def _even_share(N: int, comm: Communicator) -> slice:
    bounds = even_bounds(N, comm.size)
    return slice(bounds[comm.rank], bounds[comm.rank + 1])


def _merge(weights: Sequence[Weight]) -> Sequence[Weight]:
    """The weights as one, columns side by side, where their g_idx and kinds are equal; else as they are."""
    plain = [w for w in weights if isinstance(w, PlainWeight)]
    quantized = [w for w in weights if isinstance(w, QuantWeight)]
    if len(weights) == 1 or len({w.bias is None for w in weights}) > 1:
        return weights
    if len(plain) == len(weights) and len({w.weight.dtype for w in plain}) == 1:
        return [_side_by_side(plain, "weight")]
    first = weights[0]
    mergeable = all(
        w.bits == quantized[0].bits and w.G == quantized[0].G and bool((w.g_idx == first.g_idx).all())
        for w in quantized
    )
    return [_side_by_side(quantized, "codes", "scales", "zeros")] if mergeable and not plain else weights


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
