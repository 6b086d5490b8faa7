"""Safetensors files as bytes: where each tensor lies, and how it looks with one axis permuted, block by block.

Nothing here goes through a memory map, whose pages would count as memory of the process until the file is closed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path

import numpy as np

from ..checkpoint import bitstream
from ..checkpoint.errors import CheckpointError
from ..ops.engine import threads

# Bytes of a block that is read, permuted and written at once: few enough to stay in a CPU's cache.
BLOCK = 1 << 21

# How many bytes of a file, and what makes them, as an array of any shape.
Piece = tuple[int, Callable[[], np.ndarray]]


@dataclass(frozen=True)
class Move:
    """new[.., j, ..] = old[.., perm[j], ..] along one axis of a stored tensor.

    axis  0 or 1; a tensor of more than two axes is permuted along the first only
    perm  one integer per feature (not per word)
    bits  width of the codes that are packed into 32-bit words along this axis; None where none are
    """

    axis: int
    perm: np.ndarray
    bits: int | None = None


@dataclass(frozen=True)
class RawTensor:
    """Bytes start .. stop of the file `path`, in C order: any dtype, known by its size alone."""

    name: str
    path: Path
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's data in the file."""
        return self.stop - self.start

    @property
    def row_bytes(self) -> int:
        """Bytes of one row along the first axis."""
        return self.nbytes // self.shape[0]

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows of the first axis as (stop - start, elements of a row) unsigned integers of the elements' size."""
        itemsize = self.nbytes // prod(self.shape)
        raw = read_bytes(self.path, self.start + start * self.row_bytes, self.start + stop * self.row_bytes)
        return raw.view(f"u{itemsize}").reshape(stop - start, -1)

    def permuted(self, move: Move) -> Iterator[Piece]:
        """The tensor after `move`, in pieces that any thread can make.

        Along the first axis the whole tensor is held until its last piece is made, along the second just a few pieces.
        """
        count, perm, bits, width = self.shape[0], move.perm, move.bits, self.row_bytes
        if move.axis == 1:
            for start, stop in spans(count, BLOCK // width):
                yield (stop - start) * width, partial(self._columns, start, stop, perm, bits)
            return
        whole = self.rows(0, count)
        if bits is None:
            for start, stop in spans(count, BLOCK // width):
                yield (stop - start) * width, partial(whole.take, perm[start:stop], 0)
            return
        # 32 codes fill whole words. On its way each code takes four bytes.
        for start, stop in spans(len(perm), 32 * max(1, BLOCK // (32 * width))):
            nbytes = bitstream.words_for(stop - start, bits) * width
            yield nbytes, partial(_gather_packed, whole, perm[start:stop], bits)

    def _columns(self, start: int, stop: int, perm: np.ndarray, bits: int | None) -> np.ndarray:
        rows = self.rows(start, stop)
        if bits is None:
            return rows.take(perm, axis=1)
        return np.ascontiguousarray(_gather_packed(np.ascontiguousarray(rows.T), perm, bits).T)


class RawFile:
    """A safetensors file that the loader has accepted: size of the header, and tensors in the order of their bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self.header_bytes = 8 + int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(self.header_bytes - 8))
        header.pop("__metadata__", None)
        tensors = []
        for name, entry in header.items():
            start, stop = (self.header_bytes + offset for offset in entry["data_offsets"])
            tensors.append(RawTensor(name, path, tuple(entry["shape"]), start, stop))
        self.tensors = sorted(tensors, key=lambda t: (t.start, t.stop))


def read_bytes(path: Path, start: int, stop: int) -> np.ndarray:
    """Bytes start .. stop of a file; CheckpointError where it ends before."""
    raw = np.empty(stop - start, np.uint8)
    with path.open("rb", buffering=0) as file:

        def read(span: tuple[int, int]) -> None:
            done, end = span
            while done < end:
                found = os.preadv(file.fileno(), [raw[done:end].data], start + done)
                if not found:
                    raise CheckpointError(
                        f"{path}: expected {stop} bytes or more, found {start + done}: it shrank meanwhile"
                    )
                done += found

        threads.each(read, spans(len(raw), 4 * BLOCK))
    return raw


def byte_pieces(path: Path, start: int, stop: int) -> Iterator[Piece]:
    """Bytes start .. stop of a file, block by block."""
    for first, last in spans(stop - start, BLOCK):
        yield last - first, partial(read_bytes, path, start + first, start + last)


def spans(count: int, step: int) -> Iterator[tuple[int, int]]:
    """0 .. count cut into (start, stop) of at most `step`, and of at least 1."""
    step = max(1, step)
    for start in range(0, count, step):
        yield start, min(start + step, count)


def _gather_packed(words: np.ndarray, perm: np.ndarray, bits: int) -> np.ndarray:
    """Codes packed along the first axis, those in perm: (words, n) -> (words of len(perm) codes, n), both uint32."""
    return bitstream.pack(bitstream.take(words, bits, perm), bits).view(np.uint32)
