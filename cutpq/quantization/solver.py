"""GPTQ for one layer: the codes whose products with the calibration inputs are nearest to what is wanted.

    solution = quantize_weight(W, H, bits=4, group_size=128)

Rows are rounded one after the other, and rows that follow make up for each error as far as the Hessian of the inputs
allows (Frantar et al., arXiv 2210.17323). Beyond that, and by default:

- The target is not W but what makes up for the errors of the layers before: with X the inputs of the quantized model
  and Y the output that is wanted, W* = W + (H + damp)^-1 2/n X^T (Y - X W) minimizes ||X W* - Y||. With Y the output of
  the float model, GPTAQ (arXiv 2504.02692) uses this term row by row, QEP (arXiv 2504.09629) before GPTQ, as here.
  `drift` holds it.
- Scales are searched with each row's error weighed by 1 / U[i, i]^2, which is what it costs after the later rows have
  made up for it, and rounded to float16 before any code is chosen.
- Sweeps of coordinate descent over all rows follow, each code again the best one for all others as they are
  (QuantEase, arXiv 2309.01885); before the first of them searched scales are fitted again, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..array import Array, array_module, ceil_div, check_array
from ..ops.engine.product import each, pieces
from ..weights.weight import QuantWeight
from .factor import inverse_factor
from .order import RowOrder, row_order
from .round_rows import round_rows
from .scales import SCALES, choose_scales, stored

# Rows of a block: their errors move to the rows behind the block by one matrix product.
BLOCK = 128

# The first so many sweeps start by fitting the scales again to the codes; later ones gained nothing by it.
_REFITS = 2

# Columns are multiplied in this many panels on any number of ranks, so that the roundings are the same.
PANELS = 8


@dataclass(frozen=True)
class Options:
    """How a layer is quantized.

    bits        2, 3, 4 or 8
    group_size  rows that share a scale, or -1 for all
    sym         whether every zero point is 2**(bits-1)
    order       one of ORDERS
    damp        this fraction of the mean of the Hessian's diagonal is added to the diagonal
    scale       "search" or "minmax"
    sweeps      of coordinate descent
    """

    bits: int = 4
    group_size: int = 128
    sym: bool = True
    order: str = "static"
    damp: float = 0.01
    scale: str = "search"
    sweeps: int = 4

    def __post_init__(self) -> None:
        if self.bits not in (2, 3, 4, 8):
            raise ValueError(f"bits={self.bits} must be 2, 3, 4 or 8")
        if self.group_size != -1 and (self.group_size < 8 or self.group_size % 8):
            raise ValueError(f"group_size={self.group_size} must be -1 or a multiple of 8")
        if not 0 < self.damp < 1:
            raise ValueError(f"damp={self.damp} must be between 0 and 1")
        if self.scale not in SCALES:
            raise ValueError(f"scale={self.scale!r} is not one of {', '.join(SCALES)}")
        if self.sweeps < 0:
            raise ValueError(f"sweeps={self.sweeps} must not be negative")
        row_order(self.order, np.zeros(8), 8)


@dataclass(frozen=True)
class Solution:
    """What quantize_weight gives.

    weight  the codes, scales, zeros and g_idx
    loss    ||X (Q - W*)||^2 / ||X W*||^2: the squared error of the layer's output, relative
    damp    that was needed; None where no damping made the Hessian positive definite, and weights were rounded to the
            nearest
    """

    weight: QuantWeight
    loss: float
    damp: float | None


def quantize_weight(
    W: Array,
    H: Array,
    *,
    bits: int = 4,
    group_size: int = 128,
    sym: bool = True,
    order: str = "static",
    damp: float = 0.01,
    scale: str = "search",
    sweeps: int = 4,
    drift: Array | None = None,
    scale_dtype: type = np.float16,
) -> Solution:
    """Quantize the weight of one linear layer; see Options for the settings.

    W            (K, N) float16, bfloat16 or float32, all finite
    H            (K, K) float32, 2/n X^T X of the inputs X (n, K)
    drift        (K, N) float32, 2/n X^T (Y - X W) where Y (n, N) is the output that is wanted; None: 0
    scale_dtype  float16, or float32 for comparisons

    NumPy or CuPy arrays, all alike; deterministic. A row whose input is always 0 gets weight 0. Raises ValueError for
    settings and shapes that do not fit, and for what is not finite.
    """
    options = Options(bits, group_size, sym, order, damp, scale, sweeps)
    check_array("W", W, ("K", "N"))
    K, N = W.shape
    check_array("H", H, (K, K), np.float32)
    if drift is not None:
        check_array("drift", drift, (K, N), np.float32)
    xp = array_module(W, H, drift)
    for name, a in (("W", W), ("H", H), ("drift", drift)):
        if a is not None and not bool(xp.isfinite(a).all()):
            raise ValueError(f"{name} holds NaN or infinity")
    system = System.of(H, options)
    target = None if drift is None else system.in_order(drift)
    part = system.solve(system.in_order(W.astype(xp.float32)), target, panels(N), scale_dtype)
    weight = QuantWeight(
        part.codes, part.scales.astype(scale_dtype), part.zeros, system.g_idx, bits, system.rows_per_group
    )
    return Solution(weight, part.loss, system.damp)


def panels(N: int) -> list[slice]:
    """The columns 0 .. N in PANELS pieces of multiples of 8, or fewer where there are not so many columns."""
    width = 8 * ceil_div(N, 8 * PANELS)
    return [slice(n, min(n + width, N)) for n in range(0, N, width)]


@dataclass(frozen=True)
class Part:
    """Some columns of a solution, in the order of rows that the weight has.

    codes (K, n) uint8, scales (G, n) float32, zeros (G, n) uint8
    errors  for each panel ||X (Q - W*)||^2 and ||X W*||^2
    """

    codes: Array
    scales: Array
    zeros: Array
    errors: list[tuple[float, float]]

    @property
    def loss(self) -> float:
        """The relative squared error of all panels."""
        return relative(self.errors)


def relative(errors: Sequence[tuple[float, float]]) -> float:
    """Sum of the squared errors over the sum of the squares."""
    error, norm = (float(sum(column)) for column in zip(*errors, strict=True))
    return error / norm if norm else 0.0


@dataclass(frozen=True)
class System:
    """What all columns of a layer have in common, rows in processing order.

    A     (K, K) float32, the damped Hessian; U (K, K) its inverse factor, None where there is none
    dead  (K,) whether a row's input is always 0
    """

    options: Options
    order: RowOrder
    A: Array
    U: Array | None
    dead: Array
    damp: float | None

    @classmethod
    def of(cls, H: Array, options: Options, overwrite: bool = False) -> System:
        """Order, damping and factor for a Hessian (K, K) float32; `overwrite`: A may take the memory of H."""
        xp, K = array_module(H), len(H)
        diagonal = H.diagonal()
        order = row_order(options.order, np.asarray(diagonal.tolist()), _rows(options, K))
        perm = xp.asarray(order.perm)
        A = _permuted(H, perm) if overwrite else H[perm[:, None], perm]
        at = xp.arange(K)
        dead = A[at, at] == 0
        A[at, at] += dead  # a row without input costs nothing, and must not make the matrix singular
        mean = A[at, at].mean()
        found = inverse_factor(A, options.damp)
        U, damp = (None, None) if found is None else found
        A[at, at] += np.float32(damp or options.damp) * mean
        return cls(options, order, A, U, dead, damp)

    @property
    def rows_per_group(self) -> int:
        """Rows of a group; K where one group holds all."""
        return _rows(self.options, len(self.A))

    @property
    def g_idx(self) -> Array:
        """The group of each row of the weight, (K,) int32."""
        return array_module(self.A).asarray(self.order.g_idx)

    def in_order(self, W: Array) -> Array:
        """A copy of W (K, n), rows in processing order."""
        return W[array_module(W).asarray(self.order.perm)]

    def solve(self, W: Array, drift: Array | None, parts: Sequence[slice], scale_dtype: type = np.float16) -> Part:
        """Quantize some columns: W and drift (K, n) float32 in processing order, their panels `parts`, all n together.

        W is overwritten.
        """
        xp, perm = array_module(self.A), array_module(self.A).asarray(self.order.perm)
        W[self.dead] = 0
        target = self._target(W, drift, parts)
        grid = _Grid.of(self, target, scale_dtype)
        if self.U is None:
            codes, Q = grid.nearest(target)
        else:
            codes, Q = _gptq(self, self.U, target.copy(), grid, parts)
            for i in range(self.options.sweeps):
                if i < _REFITS and self.options.scale == "search":
                    _refit(self, target, codes, Q, grid, parts)
                _sweep(self, target, codes, Q, grid, parts)
        errors: dict[int, tuple[float, float]] = {}

        def measure(n: slice) -> None:
            errors[n.start] = _errors(self.A, target[:, n], Q[:, n])

        each(xp, measure, parts)
        restored = xp.empty_like(codes)
        restored[perm] = codes
        return Part(restored, grid.scales, grid.zeros.astype(xp.uint8), [errors[n.start] for n in parts])

    def _target(self, W: Array, drift: Array | None, parts: Sequence[slice]) -> Array:
        if drift is None or self.U is None:
            return W
        U, xp = self.U, array_module(W)
        blocks = pieces(len(U))

        def work(n: slice) -> None:
            product = xp.empty_like(drift[:, n])
            for own in blocks:  # U has zeros below its diagonal
                product[own] = U[own, own.start :] @ drift[own.start :, n]
            for own in blocks:
                W[own, n] += U[: own.stop, own].T @ product[: own.stop]

        each(xp, work, parts)
        return W


def _permuted(H: Array, perm: Array) -> Array:
    """H[perm][:, perm] in the memory of H (K, K)."""
    for block in _blocks(len(H)):
        rows = slice(block.start, block.stop)
        H[rows] = H[rows][:, perm]
    for block in _blocks(len(H)):
        columns = slice(block.start, block.stop)
        H[:, columns] = H[:, columns][perm]
    return H


def _rows(options: Options, K: int) -> int:
    return K if options.group_size == -1 else min(options.group_size, K)


@dataclass
class _Grid:
    """Scales and zeros (G, n) float32 of the groups; filled group by group where the order is not static."""

    options: Options
    order: RowOrder
    row_weight: Array | None
    scales: Array
    zeros: Array
    scale_dtype: type

    @classmethod
    def of(cls, system: System, target: Array, scale_dtype: type) -> _Grid:
        xp, order, options = array_module(target), system.order, system.options
        G = int(order.group.max()) + 1
        shape = G, target.shape[1]
        weight = None
        if options.scale == "search" and system.U is not None:
            weight = 1 / system.U.diagonal() ** 2
        grid = cls(options, order, weight, xp.ones(shape, xp.float32), xp.zeros(shape, xp.float32), scale_dtype)
        if order.is_static or system.U is None:
            for g in range(G):
                grid.choose(g, target)
        return grid

    def choose(self, g: int, w: Array) -> None:
        """Scales of group g for its rows as they are in w (K, n)."""
        rows = np.flatnonzero(self.order.group == g)
        rows = array_module(w).asarray(rows)
        weight = None if self.row_weight is None else self.row_weight[rows]
        options = self.options
        self.scales[g], self.zeros[g] = choose_scales(w[rows], options.bits, options.sym, weight, self.scale_dtype)

    def choose_from(self, rows: range, w: Array) -> None:
        """Scales of the groups whose first row is among `rows`, from w before any of these rows is rounded."""
        if self.order.is_static:
            return
        for i in rows:
            if i == 0 or self.order.group[i] != self.order.group[i - 1]:
                self.choose(int(self.order.group[i]), w)

    def nearest(self, w: Array) -> tuple[Array, Array]:
        """Codes and their numbers, each the nearest one."""
        xp = array_module(w)
        codes, q = xp.empty(w.shape, xp.uint8), xp.empty_like(w)
        nothing = xp.zeros((1, 1), xp.float32)
        for i, g in enumerate(self.order.group.tolist()):
            row, one = slice(i, i + 1), xp.asarray([g], np.int32)
            codes[row], q[row], _ = round_rows(w[row].copy(), nothing, self.scales, self.zeros, one, self.options.bits)
        return codes, q


def _blocks(K: int) -> list[range]:
    return [range(i, min(i + BLOCK, K)) for i in range(0, K, BLOCK)]


def _gptq(system: System, U: Array, W: Array, grid: _Grid, parts: Sequence[slice]) -> tuple[Array, Array]:
    """Codes and their numbers; W (K, n), the target, is used up."""
    xp = array_module(W)
    group = xp.asarray(system.order.group)
    codes, Q = xp.empty(W.shape, xp.uint8), xp.empty_like(W)
    for block in _blocks(len(W)):
        rows, later = slice(block.start, block.stop), slice(block.stop, None)
        grid.choose_from(block, W)
        pivots = U[rows, rows].diagonal()[:, None]
        codes[rows], Q[rows], e = round_rows(
            W[rows], U[rows, rows] / pivots, grid.scales, grid.zeros, group[rows], system.options.bits
        )
        e /= pivots

        def move(n: slice, rows: slice = rows, later: slice = later, e: Array = e) -> None:
            W[later, n] -= U[rows, later].T @ e[:, n]

        each(xp, move, parts if block.stop < len(W) else ())
    return codes, Q


def _sweep(system: System, target: Array, codes: Array, Q: Array, grid: _Grid, parts: Sequence[slice]) -> None:
    """Each row again, given all others: Q and codes change in place, and the error never rises."""
    A, xp = system.A, array_module(target)
    group = xp.asarray(system.order.group)
    for block in _blocks(len(A)):
        rows = slice(block.start, block.stop)
        diagonal = A[rows, rows].diagonal()
        wanted = xp.empty_like(Q[rows])

        def multiply(n: slice, rows: slice = rows, wanted: Array = wanted) -> None:
            wanted[:, n] = A[rows] @ (Q[:, n] - target[:, n])

        each(xp, multiply, parts)
        wanted /= -diagonal[:, None]
        wanted += Q[rows]
        codes[rows], Q[rows], _ = round_rows(
            wanted, A[rows, rows] / diagonal, grid.scales, grid.zeros, group[rows], system.options.bits, Q[rows]
        )


def _refit(system: System, target: Array, codes: Array, Q: Array, grid: _Grid, parts: Sequence[slice]) -> None:
    """The scale of each group again, given all codes and the other scales: Q changes in place, no error rises.

    With steps = code - zero of the group's rows and 0 elsewhere, the error of a scale s is a parabola,
    ||Q - W* + (s - scale) steps||^2 in the norm of A.
    """
    A, xp = system.A, array_module(target)
    rows_of = [np.flatnonzero(system.order.group == g) for g in range(len(grid.scales))]

    def work(n: slice) -> None:
        missed = Q[:, n] - target[:, n]
        for scale, zero, of_group in zip(grid.scales[:, n], grid.zeros[:, n], rows_of, strict=True):
            rows = xp.asarray(of_group)
            steps = codes[rows, n] - zero
            slope, curvature = xp.zeros_like(scale), xp.zeros_like(scale)
            for block in _blocks(len(of_group)):
                some = slice(block.start, block.stop)
                coupling = A[rows[some]]
                slope += (steps[some] * (coupling @ missed)).sum(axis=0)
                curvature += (steps[some] * (coupling[:, rows] @ steps)).sum(axis=0)
            best = stored(scale - slope / xp.where(curvature > 0, curvature, 1), grid.scale_dtype)
            change = best - scale
            scale[...] = xp.where(change * (2 * slope + change * curvature) < 0, best, scale)
            Q[rows, n] = steps * scale
            missed[rows] = Q[rows, n] - target[rows, n]

    each(xp, work, parts)


def _errors(A: Array, target: Array, Q: Array) -> tuple[float, float]:
    """(Q - target)^T A (Q - target) and target^T A target, summed over the columns."""
    e = Q - target
    return float((e * (A @ e)).sum(dtype=np.float64)), float((target * (A @ target)).sum(dtype=np.float64))
