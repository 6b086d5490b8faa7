"""Calibration sequences: in eight blocks that ranks share, in chunks that are computed at a time, and their sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..array import Array, array_module
from ..ranks.communicator import Communicator

# Sequences are cut into so many blocks, whatever the number of ranks. A sum over all sequences is one over the blocks
# in a fixed tree, ((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7)), of which each rank computes a branch: the same bits.
BLOCKS = 8

# Sequences are computed in chunks of about so many tokens.
_CHUNK_TOKENS = 1024

# Ranks exchange sums in pieces of so many bytes.
_PIECE_BYTES = 1 << 26

# Gives, for a chunk (a slice of this rank's rows), the arrays that are added up over all chunks.
Terms = Callable[[slice], Sequence[Array]]


@dataclass(frozen=True)
class Sequences:
    """The calibration tokens of one rank.

    tokens  (n, length) int64 of all ranks
    """

    tokens: np.ndarray
    comm: Communicator

    def __post_init__(self) -> None:
        if self.comm.size not in (1, 2, 4, 8):
            raise ValueError(f"{self.comm.size} ranks were started; calibration is shared by 1, 2, 4 or 8")

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return self.tokens.shape[1]

    @property
    def blocks(self) -> range:
        """This rank's blocks."""
        each = BLOCKS // self.comm.size
        return range(self.comm.rank * each, (self.comm.rank + 1) * each)

    @property
    def mine(self) -> np.ndarray:
        """This rank's tokens, one sequence after the other."""
        return self.tokens[self._bound(self.blocks.start) : self._bound(self.blocks.stop)].ravel()

    def rows(self, block: int) -> slice:
        """Where the tokens of one of this rank's blocks are among its tokens."""
        first = self._bound(self.blocks.start)
        return slice((self._bound(block) - first) * self.length, (self._bound(block + 1) - first) * self.length)

    def chunks(self, block: int | None = None) -> Iterator[slice]:
        """The rows of a block, or of all blocks of this rank, in chunks of whole sequences."""
        step = max(1, _CHUNK_TOKENS // self.length) * self.length
        for b in self.blocks if block is None else (block,):
            rows = self.rows(b)
            for start in range(rows.start, rows.stop, step):
                yield slice(start, min(start + step, rows.stop))

    def sums(self, terms: Terms) -> list[Array]:
        """2/n times the sum of terms(rows) over the chunks of all ranks, the same bits on every rank.

        terms  for the rows of a chunk some float32 arrays, of the same shapes for every chunk
        """
        branches: list[tuple[int, list[Array]]] = []  # level in the tree, sum of that branch
        for block in self.blocks:
            total = self._sum_of_block(block, terms)
            branches.append((0, total))
            while len(branches) > 1 and branches[-1][0] == branches[-2][0]:
                (level, left), (_, right) = branches[-2:]
                branches[-2:] = [(level + 1, _add(left, right))]
        found = [_sum_over_ranks(array, self.comm) for array in branches[0][1]]
        for array in found:
            array *= np.float32(2 / self.tokens.size)
        return found

    def _sum_of_block(self, block: int, terms: Terms) -> list[Array]:
        total: list[Array] = []
        for rows in self.chunks(block):
            total = _add(total, list(terms(rows))) if total else list(terms(rows))
        return total

    def _bound(self, block: int) -> int:
        return block * len(self.tokens) // BLOCKS


def _add(left: list[Array], right: list[Array]) -> list[Array]:
    """left + right, in left's place; a block without sequences has no arrays."""
    for a, b in zip(left, right, strict=False):
        a += b
    return left or right


def _sum_over_ranks(array: Array, comm: Communicator) -> Array:
    """The sum of every rank's array in the tree's order, a piece at a time; in the array's place."""
    if comm.size == 1:
        return array
    flat = array.reshape(-1)
    step = _PIECE_BYTES // array.itemsize
    for start in range(0, len(flat), step):
        piece = slice(start, start + step)
        parts = list(comm.all_gather(array_module(flat).ascontiguousarray(flat[piece])))
        while len(parts) > 1:
            parts = [a + b for a, b in zip(parts[::2], parts[1::2], strict=True)]
        flat[piece] = parts[0]
    return array


class Store:
    """Rows of float32 numbers in memory up to a limit, beyond it in memory-mapped files of a folder.

    limit  bytes; the memory of what was dropped serves the next arrays
    """

    def __init__(self, limit: float, folder: Path):
        self.limit, self.folder = limit, folder
        self._spare: list[np.ndarray] = []
        self._made = 0

    def new(self, rows: int, width: int) -> np.ndarray:
        """An array (rows, width) float32, not initialized."""
        size = rows * width
        flat = next((spare for spare in self._spare if spare.size >= size), None)
        if flat is None:
            self.limit += sum(spare.nbytes for spare in self._spare)
            self._spare.clear()
            if 4 * size > self.limit:
                self._made += 1
                self.folder.mkdir(parents=True, exist_ok=True)
                return np.memmap(self.folder / f"rows-{self._made}", np.float32, "w+", shape=(rows, max(1, width)))
            flat = np.empty(size, np.float32)
            self.limit -= flat.nbytes
        else:
            self._spare = [spare for spare in self._spare if spare is not flat]
        return flat[:size].reshape(rows, width)

    def drop(self, array: np.ndarray) -> None:
        """The array is not used any more."""
        if isinstance(array, np.memmap):
            assert array.filename is not None
            Path(array.filename).unlink()
        else:
            assert array.base is not None
            self._spare = sorted([*self._spare, array.base], key=len)
