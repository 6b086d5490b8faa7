"""The modules that share an input, solved together: each rank solves some columns, and all ranks get all of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from ..array import Array, array_module
from ..ranks.communicator import Communicator
from ..weights.weight import QuantWeight
from .solver import PANELS, Options, Part, System, panels, relative


@dataclass(frozen=True)
class Solved:
    """One module. weight without a bias; loss and damp as solver.Solution has them.

    few  what was done because few tokens chose an expert, if anything
    """

    weight: QuantWeight
    loss: float
    damp: float | None
    few: str | None = None


def solve_together(
    weights: list[Array], H: Array, drift: Array | None, options: Options, comm: Communicator
) -> list[Solved]:
    """Quantize modules that read the same input; to be called on every rank alike, with the same result.

    weights  (K, N) float32 of each module
    H        (K, K) float32, overwritten
    drift    (K, own_columns of each module side by side) float32 or None: see solver.quantize_weight

    Every rank computes the factor for itself, which takes no longer than on one, and solves its panels of each module.
    """
    xp = array_module(H)
    system = System.of(H, options, overwrite=True)
    ends = np.cumsum([0, *(w.shape[1] for w in weights)])
    places = [
        [slice(at + p.start, at + p.stop) for p in panels(w.shape[1])] for at, w in zip(ends, weights, strict=False)
    ]
    owned = [[p for of_module in places for p in _share(of_module, r, comm.size)] for r in range(comm.size)]
    columns = [_indices(parts) for parts in owned]
    W = [system.in_order(w[:, own_columns(w.shape[1], comm)]) for w in weights]
    widths = [p.stop - p.start for p in owned[comm.rank]]
    cuts = np.cumsum([0, *widths]).tolist()
    inside = [slice(a, b) for a, b in pairwise(cuts)]
    part = system.solve(_side_by_side(W), None if drift is None else system.in_order(drift), inside)
    part = _gather(part, columns, [len(parts) for parts in owned], comm)
    by_place = dict(zip([(p.start, p.stop) for parts in owned for p in parts], part.errors, strict=True))
    solved = []
    for i, of_module in enumerate(places):
        n = slice(int(ends[i]), int(ends[i + 1]))
        weight = QuantWeight(
            xp.ascontiguousarray(part.codes[:, n]), xp.ascontiguousarray(part.scales[:, n]).astype(np.float16),
            xp.ascontiguousarray(part.zeros[:, n]), system.g_idx, options.bits, system.rows_per_group,
        )  # fmt: skip
        errors = [by_place[p.start, p.stop] for p in of_module]
        solved.append(Solved(weight, relative(errors), system.damp))
    return solved


def _share(parts: list[slice], rank: int, size: int) -> list[slice]:
    """A rank's panels of a module: panel i belongs to the rank that has block i of the sequences."""
    each = PANELS // size
    return parts[rank * each : (rank + 1) * each]


def own_panels(N: int, comm: Communicator) -> list[slice]:
    """The panels of a module that this rank solves."""
    return _share(panels(N), comm.rank, comm.size)


def own_columns(N: int, comm: Communicator) -> slice:
    """The columns of all these panels."""
    parts = own_panels(N, comm)
    return slice(parts[0].start, parts[-1].stop) if parts else slice(0, 0)


def _side_by_side(arrays: list[Array]) -> Array:
    """The arrays' columns in one; the list is emptied, so that their memory is free again."""
    joined = arrays[0] if len(arrays) == 1 else array_module(*arrays).concatenate(arrays, axis=1)
    arrays.clear()
    return joined


def _indices(parts: list[slice]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int64), *(np.arange(p.start, p.stop) for p in parts)])


def _gather(part: Part, columns: list[np.ndarray], counts: list[int], comm: Communicator) -> Part:
    """All ranks' parts, in the order of the columns."""
    if comm.size == 1:
        order = array_module(part.codes).asarray(np.argsort(columns[0]))
        return replace(part, codes=part.codes[:, order], scales=part.scales[:, order], zeros=part.zeros[:, order])
    xp = array_module(part.codes)
    place = xp.asarray(np.argsort(np.concatenate(columns)))

    def joined(mine: Array) -> Array:
        rows = len(mine)
        every = comm.all_gather(xp.ascontiguousarray(mine).reshape(-1), [rows * len(c) for c in columns])
        bounds = np.cumsum([0, *(rows * len(c) for c in columns)])
        pieces = [every[a:b].reshape(rows, -1) for a, b in pairwise(bounds)]
        return xp.concatenate(pieces, axis=1)[:, place]

    errors = comm.all_gather(xp.asarray(np.array(part.errors, np.float64).ravel()), [2 * n for n in counts])
    pairs = [(float(a), float(b)) for a, b in np.asarray(errors.tolist()).reshape(-1, 2)]
    return Part(joined(part.codes), joined(part.scales), joined(part.zeros), pairs)
