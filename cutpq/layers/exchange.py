"""How the features that a rank has become those that its rows of a row-parallel weight need.

Each class is built once from the ranks' bounds and rows, and maps x (M, features of this rank, in disk order) to
x (M, rows of this rank's weight). AllGather and AllToAll send x transposed: what one rank sends another is then
contiguous, and choosing features is the same single copy as transposing them.
"""

from __future__ import annotations

import numpy as np

from ..array import Array, array_module, move
from ..ops.gather import gather_columns
from ..ranks.communicator import Communicator
from ..trace import span
from ..weights.permutation import invert


class Permute:
    """x[:, perm]: the rank has all features that it needs (scheme `local`). perm (K,) int32."""

    def __init__(self, perm: Array):
        self.perm = perm

    def __call__(self, x: Array) -> Array:
        """x (M, K) -> (M, K)."""
        with span("permute"):
            return gather_columns(x, self.perm)


class AllGather:
    """All ranks' features to every rank, which then keeps those of its own rows (scheme `naive`).

    x_bounds  (size + 1,) bounds of the features that each rank has, in disk order
    needs     for each rank the features that its rows take, in the order of its rows
    """

    def __init__(self, comm: Communicator, x_bounds: np.ndarray, needs: list[np.ndarray]):
        self.comm = comm
        self.widths = np.diff(x_bounds)
        self.mine = move(needs[comm.rank], comm.xp)

    def __call__(self, x: Array) -> Array:
        """x (M, features of this rank) -> (M, rows of this rank). Collective."""
        M = x.shape[0]
        with span("exchange"):
            every = self.comm.all_gather(x.T.ravel(), [int(w) * M for w in self.widths]).reshape(self.widths.sum(), M)
        with span("permute"):
            return _columns(every, self.mine)


class AllToAll:
    """Each feature to the one rank whose rows need it (scheme `all-to-all`).

    x_bounds, needs  as for AllGather
    """

    def __init__(self, comm: Communicator, x_bounds: np.ndarray, needs: list[np.ndarray]):
        owners = [np.searchsorted(x_bounds, need, side="right") - 1 for need in needs]
        sends = [need[owner == comm.rank] - x_bounds[comm.rank] for need, owner in zip(needs, owners, strict=True)]
        # Features arrive sorted by sender, and within a sender by this rank's rows: back into the order of the rows.
        row_order = invert(np.argsort(owners[comm.rank], kind="stable"))
        self.comm = comm
        self.send_counts = [len(s) for s in sends]
        self.recv_counts = np.bincount(owners[comm.rank], minlength=comm.size).tolist()
        self.sends, self.row_order = move(np.concatenate(sends), comm.xp), move(row_order, comm.xp)

    def __call__(self, x: Array) -> Array:
        """x (M, features of this rank) -> (M, rows of this rank). Collective."""
        M = x.shape[0]
        with span("permute"):
            outgoing = x.T[self.sends].ravel()
        with span("exchange"):
            arrived = self.comm.all_to_all(
                outgoing, [n * M for n in self.send_counts], [n * M for n in self.recv_counts]
            )
        with span("permute"):
            return _columns(arrived.reshape(len(self.row_order), M), self.row_order)


def _columns(features: Array, index: Array) -> Array:
    """features[index].T: (features, M) -> (M, chosen features).

    CuPy chooses and transposes in one kernel, so that the product has nothing left to copy. NumPy copies whole rows,
    and its BLAS multiplies what is transposed.
    """
    return features[index].T if array_module(features) is np else features.T[:, index]
