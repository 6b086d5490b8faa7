"""A block of rows rounded one after the other: the loop of GPTQ and of coordinate descent."""

from __future__ import annotations

from ..array import Array
from . import formulas


def round_rows(
    v: Array, coupling: Array, scales: Array, zeros: Array, group: Array, bits: int, before: Array | None = None
) -> tuple[Array, Array, Array]:
    """See formulas.round_rows."""
    return formulas.round_rows(v, coupling, scales, zeros, group, bits, before)
