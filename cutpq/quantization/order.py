"""In which order GPTQ takes the rows of a weight, and which of them share a scale."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# static       scales of contiguous groups from the weights before anything is rounded; rows by activation
# group-aware  groups by their largest activation, inside each its rows by activation
# act          rows by activation, groups of rows that follow each other then: g_idx is scrambled
# none         as they are
ORDERS = ("static", "group-aware", "act", "none")


@dataclass(frozen=True)
class RowOrder:
    """perm       (K,) int32, row perm[i] of the weight is taken as the i-th
    group      (K,) int32, the group of the i-th row taken
    is_static  whether the scales of all groups are chosen before the first row is rounded
    """

    perm: np.ndarray
    group: np.ndarray
    is_static: bool

    @property
    def g_idx(self) -> np.ndarray:
        """The group of each row as the weight has them, (K,) int32."""
        g_idx = np.empty_like(self.group)
        g_idx[self.perm] = self.group
        return g_idx


def row_order(order: str, activation: np.ndarray, group_size: int) -> RowOrder:
    """The order of rows with these mean squares of their inputs: the largest first.

    activation  (K,) the diagonal of the Hessian; equal numbers keep their order
    group_size  of K rows, the last group short where it does not divide them; GPTQModel 7.7's group-aware order puts
                such a group last

    Raises ValueError for an order that is not one of ORDERS.
    """
    K = len(activation)
    trivial = np.arange(K) // group_size
    if order == "none":
        perm = np.arange(K)
    elif order in ("static", "act"):
        perm = np.argsort(-activation, kind="stable")
    elif order == "group-aware":
        whole = K // group_size * group_size
        inside = np.argsort(-activation[:whole].reshape(-1, group_size), axis=1, kind="stable")
        inside += np.arange(len(inside))[:, None] * group_size
        largest = activation[:whole].reshape(-1, group_size).max(axis=1)
        tail = whole + np.argsort(-activation[whole:], kind="stable")
        perm = np.concatenate([inside[np.argsort(-largest, kind="stable")].ravel(), tail])
    else:
        raise ValueError(f"order={order!r} is not one of {', '.join(ORDERS)}")
    group = trivial if order == "act" else trivial[perm]
    return RowOrder(perm.astype(np.int32), group.astype(np.int32), order == "static")
