"""The constants of the codec kernels: what Element and Scale say, as tile/ in cuda_src names it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..array import ceil_div
from ..kernels.config import FLOAT16, Config, weighted_row_bytes
from .formats import RULES, Element, Scale, carry_threshold

MOST_BLOCKS = 2048


@dataclass(frozen=True)
class WireConfig(Config):
    """The kernels of a block codec: encode, decode_sum, decode_sum_encode and decode_sum_rmsnorm.

    The facts of formats.Element and formats.Scale, as the headers in tile/ name them; RANKS are added up.
    """

    ELEMENT_BITS: int
    MANTISSA_BITS: int
    ELEMENT_BIAS: int
    LARGEST_CODE: int
    ELEMENT_LARGEST: int  # the bits of float32
    MAX_EXPONENT: int
    BLOCK: int
    SCALE_BITS: int
    SCALE_MANTISSA_BITS: int
    SCALE_BIAS: int
    SCALE_SMALLEST: int
    SCALE_LARGEST: int
    SCALE_NAN: int
    RULE: int
    CARRY_AT: int
    DTYPE: int
    RANKS: int
    THREADS: int = 256

    @property
    def scratch_bytes(self) -> int:
        """Shared memory of what encodes: two bytes for each scale of a tile."""
        return 2 * self.THREADS * 8 // self.BLOCK

    @property
    def groups(self) -> int:
        """Groups of eight numbers that a thread takes at a time."""
        return 1

    def blocks(self, n: int) -> int:
        """Blocks of the grid for n numbers: of what its threads take at a time a block has several where n is large.

        What a block begins with, as the bounds of its share, is then paid for once. MOST_BLOCKS fill a device twice.
        """
        return min(max(1, ceil_div(n, 8 * self.groups * self.THREADS)), MOST_BLOCKS)

    def row_smem_bytes(self, K: int) -> int:
        """decode_sum_rmsnorm: shared memory for a row of K."""
        return weighted_row_bytes(self.THREADS, K)


@dataclass(frozen=True)
class EncodeConfig(WireConfig):
    """encode and decode_sum_encode; PACKED: sixteen numbers a thread through half2, not eight through float32.

    See tile/packed_e2m1.cuh and tile/packed_adding.cuh.
    """

    PACKED: bool = False

    @property
    def groups(self) -> int:
        return 2 if self.PACKED else 1


@dataclass(frozen=True)
class SumConfig(WireConfig):
    """decode_sum; a thread takes GROUPS_OF_THREAD groups of the same codec block."""

    GROUPS_OF_THREAD: int = 1

    @property
    def groups(self) -> int:
        return self.GROUPS_OF_THREAD


def sum_config(element: Element, block: int, scale: Scale, rule: str, dtype: int, ranks: int) -> SumConfig:
    """The constants of decode_sum: two groups a thread where two threads at least have a codec block.

    So the 16 bytes that these store of float16 are neighbours, and fill the 32 that memory is written by.
    """
    groups = 2 if block >= 32 else 1
    return SumConfig(**vars(wire_config(element, block, scale, rule, dtype, ranks)), GROUPS_OF_THREAD=groups)


def encode_config(element: Element, block: int, scale: Scale, rule: str, dtype: int) -> EncodeConfig:
    """The constants of encode: packed for MXFP4, and other blocks of 16 or more, out of float16."""
    packed = (element.name, scale.name, dtype) == ("e2m1", "e8m0", FLOAT16) and block % 16 == 0
    return EncodeConfig(**vars(wire_config(element, block, scale, rule, dtype)), PACKED=packed)


def sum_encode_config(element: Element, block: int, scale: Scale, rule: str, ranks: int) -> EncodeConfig:
    """The constants of decode_sum_encode: packed for MXFP4, and other blocks of 16 or more, of 2 to 21 ranks.

    More than 21 largest elements would leave no room for scales that differ (tile/packed_sum.cuh).
    """
    packed = (element.name, scale.name) == ("e2m1", "e8m0") and block % 16 == 0 and 2 <= ranks <= 21
    return EncodeConfig(**vars(wire_config(element, block, scale, rule, FLOAT16, ranks)), PACKED=packed)


def wire_config(element: Element, block: int, scale: Scale, rule: str, dtype: int, ranks: int = 1) -> WireConfig:
    """The constants of a codec. A carry threshold T counts from T on; for rceil from the number above it on."""
    carry_at = int((carry_threshold(element, rule) - 1) * 2**23) + (rule == "rceil")
    return WireConfig(
        element.bits, element.mantissa_bits, element.bias, element.largest_code,
        int(np.float32(element.largest).view(np.uint32)), element.max_exponent, block,
        scale.bits, scale.mantissa_bits, scale.bias, scale.smallest_code, scale.largest_code, scale.nan_code,
        RULES.index(rule), carry_at, dtype, ranks,
    )  # fmt: skip
