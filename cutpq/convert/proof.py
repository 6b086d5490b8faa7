"""Proof, from the files alone, that a converted checkpoint is the original with its features in another order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from ..array import Array
from ..checkpoint import bitstream
from ..checkpoint.errors import CheckpointError
from ..checkpoint.folder import Checkpoint
from ..checkpoint.mlp_names import MlpModules
from ..ops.engine import threads
from .raw_tensors import BLOCK, Move, RawFile, RawTensor, read_bytes, spans
from .reader import ConversionError, Reader


def prove(
    src: Path,
    dst: Path,
    files: list[RawFile],
    moves: dict[str, Move],
    perms: dict[MlpModules, np.ndarray],
    count: Callable[[int], None],
) -> None:
    """Raise ConversionError unless the folder `dst` holds `src` with the features of each MLP permuted, bit for bit.

    For each MLP of `perms`, with P its permutation, as the loader reads both folders:
        down[k, n] of dst is down[P[k], n] of src, and gate[k, n] and up[k, n] are those of column P[n], bias too.
    A weight is a function of its code, zero point and scale. These three are compared, element by element, and so the
    dequantized weights are equal in whatever dtype. Headers and all tensors without a move are compared as bytes.

    files  of src;  count  is told the bytes compared
    Memory: the memory maps of both folders are dropped whenever they have shown as much as the largest tensor.
    """
    by_name = {tensor.name: tensor for file in files for tensor in file.tensors}
    for file in files:
        _same_bytes(file, dst / file.path.name, moves, count)
    parts = defaultdict(list)
    for name in moves:
        parts[name.rpartition(".")[0]].append(by_name[name])
    largest = max(tensor.nbytes for tensor in by_name.values())
    readers = Reader(src, largest), Reader(dst, largest)
    for mlp, perm in perms.items():
        columns = np.concatenate([perm, perm + len(perm)]) if mlp.fused else perm
        for name, rows, cols in [(mlp.down, perm, None)] + [(name, None, columns) for name in mlp.first]:
            nbytes = sum(part.nbytes for part in parts[name])
            try:
                old, new = (reader.before(nbytes) for reader in readers)
                if f"{name}.weight" in by_name:
                    _same_plain(old, new, parts[name], columns)
                else:
                    _same_weight(old, new, name, rows, cols)
            except CheckpointError as e:
                raise ConversionError(f"proof failed: {e}") from e
            count(nbytes)


def _same_bytes(file: RawFile, copy: Path, moves: dict[str, Move], count: Callable[[int], None]) -> None:
    """Compare the header and each tensor without a move as bytes."""
    size, found = file.path.stat().st_size, copy.stat().st_size
    if size != found:
        raise ConversionError(f"proof failed: {copy} has {found} bytes, not {size}")
    spots = [("the header", 0, file.header_bytes)]
    spots += [(t.name, t.start, t.stop) for t in file.tensors if t.name not in moves]
    for what, start, stop in spots:

        def compare(piece: tuple[int, int], what: str = what, start: int = start) -> None:
            old, new = (read_bytes(path, start + piece[0], start + piece[1]) for path in (file.path, copy))
            _check(np.array_equal(old, new), what, copy)

        threads.each(compare, spans(stop - start, BLOCK))
        count(stop - start)


def _same_weight(
    old: Checkpoint, new: Checkpoint, name: str, rows: np.ndarray | None, columns: np.ndarray | None
) -> None:
    """Compare a module's weight with rows and columns of the old one, of which one is None: in the order they had.

    The codes are compared in pieces along that axis, which stay in a core's cache. Where columns moved, they are
    compared as they are packed: a word holds codes of one column. Where rows moved, those of the old weight are taken
    in the order in which the new one's words are unpacked fastest.
    """
    (K, N), bits = old.shape(name), old.spec(name).bits
    places = np.arange(0) if rows is None else _places(rows, bits)

    def check(part: str, a: Array | None, b: Array | None) -> None:
        _check(_same_bits(a, b), f"{name} ({part})", new.folder)

    def compare_words(start: int, stop: int) -> None:
        own = slice(start, stop)
        check("codes", old.words(name, own, columns), new.words(name, own))

    def compare_rows(start: int, stop: int) -> None:
        own = slice(start, stop)
        a, b = (_fields(ckpt.words(name, slice(K), own), bits, K) for ckpt in (old, new))
        whole = np.empty((K, stop - start), np.uint8)
        for piece, field in a:
            whole[piece] = field
        for piece, field in b:
            check("codes", whole.take(places[piece], axis=0), field)

    def compare_others() -> None:
        check("g_idx", old.g_idx(name)[slice(None) if rows is None else rows], new.g_idx(name))
        a, b = old.weight(name, slice(0), columns), new.weight(name, slice(0))
        for part in ("scales", "zeros", "bias"):
            check(part, getattr(a, part), getattr(b, part))

    compare, length, other = (compare_words, K, N) if rows is None else (compare_rows, N, K)
    tasks: list[Callable[[], None]] = [compare_others]
    tasks += [partial(compare, *piece) for piece in spans(length, max(32, BLOCK // other // 32 * 32))]
    threads.each(lambda compare: compare(), tasks)


def _fields(words: np.ndarray, bits: int, count: int) -> Iterator[tuple[slice, np.ndarray]]:
    """bitstream.fields, and where each piece lies in their order."""
    start = 0
    for field in bitstream.fields(words, bits, count):
        yield slice(start, start + len(field)), field
        start += len(field)


def _places(rows: np.ndarray, bits: int) -> np.ndarray:
    """Where bitstream.fields of a weight has the codes of these rows, in the order of fields themselves."""
    order = bitstream.order_of_fields(bits, len(rows))
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return place[rows[order]]


def _same_plain(old: Checkpoint, new: Checkpoint, parts: list[RawTensor], perm: np.ndarray) -> None:
    for part in parts:
        whole = old.tensor(part.name)
        for start, stop in spans(len(perm), BLOCK // part.row_bytes):
            block = new.tensor(part.name, slice(start, stop))
            _check(_same_bits(whole[perm[start:stop]], block), part.name, new.folder)


def _same_bits(a: Array | None, b: Array | None) -> bool:
    """Same shape, dtype and bits; None equals None."""
    if a is None or b is None:
        return a is b
    same = a.shape == b.shape and a.dtype == b.dtype
    bits = f"u{a.dtype.itemsize}"
    return same and np.array_equal(np.ascontiguousarray(a).view(bits), np.ascontiguousarray(b).view(bits))


def _check(holds: bool, what: str, where: Path) -> None:
    if not holds:
        raise ConversionError(f"proof failed: {what} in {where} is not the permuted original; nothing was kept")
