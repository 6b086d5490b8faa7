"""Slow readers of the checkpoint formats: one number at a time, from the formats' descriptions.

Nothing here comes from cutpq, and nothing is clever, so that a reader can hold each line against the description.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from assertions import assert_exact
from safetensors.numpy import load_file


@dataclass(frozen=True)
class Weight:
    """What a module says: codes (K, N), zeros (G, N), scales (G, N), g_idx (K,), and the dequantized weight (K, N)."""

    codes: np.ndarray
    zeros: np.ndarray
    scales: np.ndarray
    g_idx: np.ndarray
    dequantized: np.ndarray


def load(folder: str | Path) -> dict[str, np.ndarray]:
    """Every tensor of a folder, by name."""
    folder = Path(folder)
    index = folder / "model.safetensors.index.json"
    files = ["model.safetensors"]
    if index.exists():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    return {name: array for file in files for name, array in load_file(folder / file).items()}


def gptq(tensors: dict[str, np.ndarray], name: str, bits: int, group_size: int, sym: bool, label: str) -> Weight:
    """A GPTQ module.

    The stored zero point is z - 1 under the label "gptq" and z under "gptq_v2"; a symmetric weight's z is
    2**(bits-1), so that for these a tensor full of one of the two possible values tells whatever the label is.
    """
    qweight, qzeros, scales = (tensors[f"{name}.{t}"] for t in ("qweight", "qzeros", "scales"))
    (G, N), K = scales.shape, qweight.shape[0] * 32 // bits
    codes = np.array([bit_stream(qweight[:, n].tolist(), bits, K) for n in range(N)], np.uint8).T
    stored = np.array([bit_stream(qzeros[g].tolist(), bits, N) for g in range(G)], np.int64)
    middle = 2 ** (bits - 1)
    minus_one = label == "gptq"
    if sym and (stored == middle - 1).all():
        minus_one = True
    if sym and (stored == middle).all():
        minus_one = False
    zeros = np.array([[(int(z) + minus_one) % 2**bits for z in row] for row in stored], np.uint8)
    g_idx = group_of_rows(K, G, group_size)
    held = tensors.get(f"{name}.g_idx")
    if held is not None and not (G > 1 and all(g == 0 for g in held.tolist())):
        g_idx = np.array([g + G if g < 0 else g for g in held.tolist()], np.int32)
    return _weight(codes, zeros, scales, g_idx)


def awq(tensors: dict[str, np.ndarray], name: str, group_size: int) -> Weight:
    """An AWQ module of the layout gemm: nibbles 0 .. 7 of a word are columns 0, 2, 4, 6, 1, 3, 5, 7 of eight."""
    qweight, qzeros, scales = (tensors[f"{name}.{t}"] for t in ("qweight", "qzeros", "scales"))
    K, (G, _) = qweight.shape[0], scales.shape
    codes = np.array([_awq_row(row.tolist()) for row in qweight], np.uint8)
    zeros = np.array([_awq_row(row.tolist()) for row in qzeros], np.uint8)
    return _weight(codes, zeros, scales, group_of_rows(K, G, group_size))


def compressed(tensors: dict[str, np.ndarray], name: str, bits: int, group_size: int) -> Weight:
    """A compressed-tensors module of the format pack-quantized; stored is signed + 2**(bits-1), zeros likewise."""
    packed, scales = tensors[f"{name}.weight_packed"], tensors[f"{name}.weight_scale"]
    N, K = (int(v) for v in tensors[f"{name}.weight_shape"])
    G = scales.shape[1]
    codes = np.array([bit_stream(packed[n].tolist(), bits, K) for n in range(N)], np.uint8).T
    zeros = np.full((G, N), 2 ** (bits - 1), np.uint8)
    if f"{name}.weight_zero_point" in tensors:
        points = tensors[f"{name}.weight_zero_point"]
        zeros = np.array([bit_stream(points[:, g].tolist(), bits, N) for g in range(G)], np.uint8)
    g_idx = group_of_rows(K, G, group_size)
    held = tensors.get(f"{name}.weight_g_idx", tensors.get(f"{name}.g_idx"))
    if held is not None and not all(g == -1 for g in held.tolist()):
        g_idx = held.astype(np.int32)
    return _weight(codes, zeros, scales.T, g_idx)


def assert_same_weight(w: Any, want: Weight) -> None:
    """A loaded weight has the oracle's numbers, and its formula in float32, rounded once, the oracle's bits."""
    assert_exact(w.codes, want.codes)
    assert_exact(w.zeros, want.zeros)
    assert_exact(w.g_idx, want.g_idx)
    assert w.scales.dtype == (np.float16 if want.scales.dtype == np.float16 else np.float32)
    assert_exact(w.scales.astype(np.float32), want.scales.astype(np.float32))
    difference = w.codes.astype(np.float32) - w.zeros.astype(np.float32)[w.g_idx]
    with np.errstate(over="ignore"):
        dequantized = (difference * w.scales.astype(np.float32)[w.g_idx]).astype(np.float16)
    assert_exact(dequantized, want.dequantized)


def bit_stream(words: list[int], bits: int, count: int) -> list[int]:
    """`count` numbers of `bits` bits from 32-bit words, lowest bits first, across the borders of words."""
    line = 0
    for i, word in enumerate(words):
        line |= (word % 2**32) << (32 * i)
    text = bin(line)[2:].zfill(32 * len(words))[::-1]  # bit b of the stream is character b
    return [int(text[i * bits : (i + 1) * bits][::-1], 2) for i in range(count)]


def group_of_rows(K: int, G: int, group_size: int) -> np.ndarray:
    """Groups of rows in order."""
    return np.array([0 if G == 1 else k // group_size for k in range(K)], np.int32)


def _awq_row(words: list[int]) -> list[int]:
    row = []
    for word in words:
        eight = [0] * 8
        for nibble, column in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
            eight[column] = (word % 2**32) // 16**nibble % 16
        row += eight
    return row


def _weight(codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray, g_idx: np.ndarray) -> Weight:
    """With the weight ((code - zero) * scale): the product in float32, rounded once to float16."""
    scales32 = scales.astype(np.float32)
    dequantized = np.empty(codes.shape, np.float16)
    with np.errstate(over="ignore"):
        for k, g in enumerate(g_idx.tolist()):
            difference = codes[k].astype(np.float32) - zeros[g].astype(np.float32)
            dequantized[k] = (difference * scales32[g]).astype(np.float16)
    return Weight(codes, zeros, scales, g_idx, dequantized)
