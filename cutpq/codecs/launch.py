"""The steps of a compressed sum, each one kernel: for CuPy, and for NumPy where kernels run on the CPU.

A wire here is that of `shares` shares (Layout.shares), one behind the other; of one share it is Codec.encode's. The
formulas of the same steps, for NumPy, are in codec.py and all_reduce.py; the bits are equal.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from ..array import Array, address, aligned, array_module
from ..kernels import load as kernels
from ..kernels.config import MOST_ELEMENTS, payload_code
from .config import EncodeConfig, SumConfig, WireConfig, encode_config, sum_config, sum_encode_config, wire_config
from .layout import Layout


def takes(codec: Layout, xp: ModuleType, n: int) -> bool:
    """Whether kernels make and read wires of n elements: of every codec without its options."""
    return kernels.usable(xp) and not codec.rotate and not codec.outliers and 0 < n <= MOST_ELEMENTS


def encode(x: Array, codec: Layout, shares: int = 1, *, padding: int = 0, out: Array | None = None) -> Array:
    """The wires of the shares of x: uint8 (sum of Layout.wire_bytes of each share + (padding > 0),).

    x        (n,) float16, bfloat16 or float32; the last block is filled with zeros
    padding  how many of them there are, for a wire that ends with their number; 0 for one that does not
    """
    xp = array_module(x, out)
    x = aligned(x)
    launch, nbytes = _encoding(xp, codec, x.dtype, x.size, shares, padding)
    direct = out is not None and out.flags.c_contiguous
    wire = out if direct and out is not None else xp.empty(nbytes, np.uint8)
    launch(x, wire)
    if out is not None and wire is not out:
        out[...] = wire
    return wire if out is None else out


@kernels.kept
def _encoding(
    xp: ModuleType, codec: Layout, dtype: np.dtype, n: int, shares: int, padding: int
) -> tuple[kernels.Launch, int]:
    """The launch of encode, and the bytes that it writes."""
    sizes = codec.shares(n, shares)
    config = encode_config(codec.element, codec.block, codec.scale, codec.rule, payload_code(dtype))
    launch = kernels.load("encode", config, xp).settled(
        (config.blocks(sizes[0]), shares), config.THREADS, n, padding, smem_bytes=config.scratch_bytes
    )
    return launch, sum(map(codec.wire_bytes, sizes)) + (padding > 0)


def decode_sum(wires: Array, codec: Layout, n: int, dtype: Any, shares: int = 1) -> Array:
    """sum over ranks of what their wires say, in float32 and in rank order, rounded once to dtype: (n,).

    wires  (ranks, bytes) uint8, each of `shares` shares of n elements
    """
    xp = array_module(wires)
    wires = xp.ascontiguousarray(wires)
    y = xp.empty(n, dtype)
    config = _sum_config(codec, y.dtype, len(wires))
    grid = config.blocks(codec.shares(n, shares)[0]), shares
    kernels.load("decode_sum", config, xp)(grid, config.THREADS, wires, y, wires.shape[1], n)
    return y


def decode_sum_encode(wires: Array, codec: Layout, n: int) -> Array:
    """The wire of the sum over ranks of what their wires say; the sum itself is never in memory.

    wires  (ranks, bytes) uint8, of n elements, whole blocks -> (bytes,) uint8
    """
    xp = array_module(wires)
    wires = xp.ascontiguousarray(wires)
    total = xp.empty(wires.shape[1], np.uint8)
    config = _sum_encode_config(codec, len(wires))
    kernel = kernels.load("decode_sum_encode", config, xp)
    grid, blocks = (config.blocks(n),), n // codec.block
    kernel(grid, config.THREADS, wires, total, wires.shape[1], blocks, smem_bytes=config.scratch_bytes)
    return total


def takes_rows(codec: Layout, residual: Array) -> bool:
    """Whether decode_sum_rmsnorm can take this residual, (M, K) float16 or bfloat16."""
    if not residual.flags.c_contiguous or address(residual) % 16:
        return False
    return _takes_shape(array_module(residual), codec, residual.dtype, *residual.shape)


@kernels.kept
def _takes_shape(xp: ModuleType, codec: Layout, dtype: np.dtype, M: int, K: int) -> bool:
    if not takes(codec, xp, M * K) or K % 8 or dtype.itemsize != 2:
        return False
    return _config(codec, dtype).row_smem_bytes(K) <= kernels.device(xp).smem_limit


def decode_sum_rmsnorm(
    wires: Array, codec: Layout, residual: Array, weight: Array, perm: Array, epsilon: float, shares: int = 1
) -> Array:
    """residual += decode_sum(wires), in place; rmsnorm_gather(residual, weight, perm, epsilon). One pass.

    wires     (ranks, bytes) uint8, each of `shares` shares of M * K elements
    residual  (M, K) float16 or bfloat16, contiguous, aligned to 16 bytes; weight (K,) of its dtype; perm (K,) int32
    """
    xp = array_module(wires, residual, weight, perm)
    M, K = residual.shape
    wires = xp.ascontiguousarray(wires)
    y = xp.empty(residual.shape, residual.dtype)
    launch = _norming(xp, codec, residual.dtype, wires.shape, shares, M, K, epsilon)
    launch(wires, residual, aligned(weight), perm, y)
    return y


@kernels.kept
def _norming(
    xp: ModuleType,
    codec: Layout,
    dtype: np.dtype,
    wires: tuple[int, int],
    shares: int,
    M: int,
    K: int,
    epsilon: float,
) -> kernels.Launch:
    config = _config(codec, dtype, wires[0])
    kernel = kernels.load("decode_sum_rmsnorm", config, xp)
    numbers = wires[1], shares, M * K, K, epsilon
    return kernel.settled((M,), config.THREADS, *numbers, smem_bytes=config.row_smem_bytes(K))


@cache
def _sum_config(codec: Layout, dtype: Any, ranks: int) -> SumConfig:
    return sum_config(codec.element, codec.block, codec.scale, codec.rule, payload_code(dtype), ranks)


@cache
def _sum_encode_config(codec: Layout, ranks: int) -> EncodeConfig:
    return sum_encode_config(codec.element, codec.block, codec.scale, codec.rule, ranks)


@cache
def _config(codec: Layout, dtype: Any, ranks: int = 1) -> WireConfig:
    return wire_config(codec.element, codec.block, codec.scale, codec.rule, payload_code(dtype), ranks)
