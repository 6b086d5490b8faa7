"""How attention's scores are cut into chunks that stay in L2: shapes alone, for the kernels and for the cost model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..array import ceil_div

# Scores of a chunk take at most this: they stay in the L2 of an A100 (40 MiB) or H100 (50 MiB).
SCORE_BYTES = 32 << 20
# Rows of scores in one product that amortize reading its keys: if memory is short, take fewer heads before fewer rows.
CHUNK_ROWS = 512
# Lengths of caches and chunks are multiples of this: kernels read 16-bit probabilities in 16-byte words.
KEYS_ALIGN = 8


@dataclass(frozen=True)
class Chunk:
    """The scores that are computed together.

    pairs    of a sequence and a key/value head, numbered sequence by sequence
    queries  by their index among a sequence's new tokens
    keys     positions that the queries see, from a multiple of KEYS_ALIGN to another
    """

    pairs: slice
    queries: slice
    keys: slice

    def shape(self, rep: int) -> tuple[int, int, int]:
        """(pairs, rows, keys) of the scores, where `rep` query heads share a key/value head."""
        pairs, queries, keys = (part.stop - part.start for part in (self.pairs, self.queries, self.keys))
        return pairs, queries * rep, keys


def chunks(positions: np.ndarray, pairs: int, rep: int, window: int | None) -> Iterator[Chunk]:
    """Chunks that have every query of every pair once, each with all keys that its queries see.

    positions  (batch, T) of the queries, -1 for those that do not exist
    pairs      how many: sequences times key/value heads, of which each has `rep` query heads
    window     a query sees at most this many keys, its own the last; None for all

    A chunk's scores fit SCORE_BYTES, unless those of a single query and pair do not.
    """
    T = positions.shape[1]
    fitting_rows = SCORE_BYTES // (4 * aligned_keys(int(positions.max()) + 1))
    step = max(1, min(max(fitting_rows // pairs, CHUNK_ROWS), fitting_rows) // rep)
    pair_step = max(1, fitting_rows // (min(step, T) * rep))
    for first in range(0, T, step):
        queries = slice(first, min(first + step, T))
        seen_from = positions[:, queries]
        seen_from = seen_from[seen_from >= 0]
        first_key = 0 if window is None else max(0, int(seen_from.min()) - window + 1)
        keys = slice(first_key // KEYS_ALIGN * KEYS_ALIGN, aligned_keys(int(seen_from.max()) + 1))
        for pair in range(0, pairs, pair_step):
            yield Chunk(slice(pair, min(pair + pair_step, pairs)), queries, keys)


def aligned_keys(keys: int) -> int:
    """`keys` rounded up to a multiple of KEYS_ALIGN."""
    return ceil_div(keys, KEYS_ALIGN) * KEYS_ALIGN
