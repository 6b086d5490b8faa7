"""The two streams of activations through a model that is being quantized, one half of a block after the other.

x is what the quantized layers give, x0 what the float model would have given. A module reads X in the first stream and
X0 in the second. Two sums over all tokens are taken: H = 2/n X^T X, and drift = 2/n X^T (X0 - X) W, the error that
earlier layers cause in the module's output. Then the module is solved, and x passes through its dequantized weight.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..array import Array, array_module, to_numpy
from ..ops.formulas import dequant
from ..ranks.agree import on_every
from ..ranks.communicator import Communicator
from ..weights.weight import QuantWeight
from .activations import BLOCKS, Sequences, Store
from .float_model import Block, FloatModel, Half, Linear
from .job import Job, QuantizationError
from .layer import Solved, solve_together

# Called with each module's name and what it became.
Report = Callable[[str, Solved], None]


class Streams:
    """Every rank has the rows of its own sequences, in host memory or files; it computes where comm.xp is."""

    def __init__(self, job: Job, comm: Communicator, store: Store):
        self.job, self.comm, self.store = job, comm, store
        self.sequences = Sequences(job.tokens, comm)
        self.model = FloatModel(job.ckpt, job.decoder, job.tokens.shape[1], comm.xp)
        self.x = self._new(job.decoder.hidden)
        self.x0 = self._new(job.decoder.hidden) if job.asymmetric else None

    def start(self) -> None:
        """Both streams begin as the embedding of the tokens."""
        tokens = self.sequences.mine
        for rows in self.sequences.chunks():
            self.x[rows] = self.model.embed(tokens[rows])
            if self.x0 is not None:
                self.x0[rows] = self.x[rows]

    def quantize_block(self, layer: int, report: Report) -> dict[str, Solved]:
        """Quantize the modules of a decoder layer; both streams go on to the next, unless it is the last."""
        block = self.model.block(layer)
        solved = self._half(block, block.attention, report, ends=False)
        return solved | self._half(block, block.mlp, report, ends=layer == self.job.decoder.layers - 1)

    def _half(self, block: Block, half: Half, report: Report, ends: bool) -> dict[str, Solved]:
        """x += write(act(read(norm(x)))): the modules `read` solved together, then the module `write`."""
        readers = [block.linear(name) for name in half.read]
        writer = block.linear(half.write)
        H, drift = self._sums_of_norm(half, readers)
        solved = self._solve(half.read, readers, H, drift, report)
        quantized = [self._forward(name, linear, solved) for name, linear in zip(half.read, readers, strict=True)]

        middle = self._new(writer.weight.shape[0])
        H, drift = self._sums_of_middle(half, block, readers, quantized, writer, middle, ends)
        solved |= self._solve((half.write,), [writer], H, drift, report)
        last = self._forward(half.write, writer, solved)
        for rows in self.sequences.chunks() if not ends else ():
            self.x[rows] = to_numpy(block.add(self._at(self.x, rows), last(self._at(middle, rows))))
        self.store.drop(middle)
        return solved

    def _sums_of_norm(self, half: Half, readers: Sequence[Linear]) -> tuple[Array, Array | None]:
        def terms(rows: slice) -> list[Array]:
            h = half.norm(self._at(self.x, rows))
            if self.x0 is None:
                return [h.T @ h]
            return [h.T @ h, h.T @ (half.norm(self._at(self.x0, rows)) - h)]

        H, *cross = self._finite(self.sequences.sums(terms), half.read[0])
        if not cross:
            return H, None
        return H, array_module(H).concatenate([cross[0] @ linear.weight for linear in readers], axis=1)

    def _sums_of_middle(
        self, half: Half, block: Block, readers: Sequence[Linear], quantized: Sequence[Linear], writer: Linear,
        middle: np.ndarray, ends: bool,
    ) -> tuple[Array, Array | None]:  # fmt: skip
        """Sums of what `write` multiplies, which is kept in `middle`; x0 goes on to the next half."""

        def terms(rows: slice) -> list[Array]:
            h = half.norm(self._at(self.x, rows))
            m = half.act([linear(h) for linear in quantized])
            middle[rows] = to_numpy(m)
            if self.x0 is None:
                return [m.T @ m]
            x0 = self._at(self.x0, rows)
            h = half.norm(x0)
            y = half.act([linear(h) for linear in readers]) @ writer.weight
            drift = m.T @ (y - m @ writer.weight)
            if not ends:
                self.x0[rows] = to_numpy(block.add(x0, y if writer.bias is None else y + writer.bias))
            return [m.T @ m, drift]

        H, *drift = self._finite(self.sequences.sums(terms), half.write)
        return H, drift[0] if drift else None

    def _solve(
        self, names: Sequence[str], linears: Sequence[Linear], H: Array, drift: Array | None, report: Report
    ) -> dict[str, Solved]:
        wanted = [i for i, name in enumerate(names) if self.job.wants(name)]
        if not wanted:
            return {}
        weights = [linears[i].weight for i in wanted]
        if drift is not None:
            ends = np.cumsum([0, *(linear.weight.shape[1] for linear in linears)])
            drift = array_module(H).concatenate([drift[:, ends[i] : ends[i + 1]] for i in wanted], axis=1)
        solved = solve_together(weights, H, drift, self.job.options, self.comm)
        found = dict(zip([names[i] for i in wanted], solved, strict=True))
        for name, module in found.items():
            report(name, module)
        return found

    def _forward(self, name: str, linear: Linear, solved: dict[str, Solved]) -> Linear:
        """A module as it computes from now on: with the weight that was solved, where it was."""
        if name not in solved:
            return linear
        return Linear(dequantized(solved[name].weight).astype(np.float32), linear.bias)

    def _finite(self, sums: list[Array], name: str) -> list[Array]:
        if not all(bool(array_module(a).isfinite(a).all()) for a in sums):
            raise QuantizationError(
                f"the inputs of {name} hold NaN or infinity for these calibration tokens: the float model itself "
                "overflows there"
            )
        return sums

    def _new(self, width: int) -> np.ndarray:
        return on_every(self.comm, lambda: self.store.new(len(self.sequences.mine), width))

    def _at(self, x: np.ndarray, rows: slice) -> Array:
        return self.comm.xp.asarray(x[rows])

    # ---- to be continued by another run

    def save(self, folder: Path) -> None:
        """Write this rank's blocks to a new folder; on disk when this returns."""
        folder.mkdir(parents=True, exist_ok=True)
        for path, array, rows in self._files(folder):
            with path.open("wb") as file:
                np.ascontiguousarray(array[rows]).tofile(file)
                file.flush()
                os.fsync(file.fileno())

    def restore(self, folder: Path) -> None:
        """Read what `save` wrote, under any number of ranks."""
        for path, array, rows in self._files(folder):
            found = np.fromfile(path, np.float32)
            array[rows] = found.reshape(rows.stop - rows.start, -1)

    def _files(self, folder: Path) -> list[tuple[Path, np.ndarray, slice]]:
        streams = [("quantized", self.x), *([] if self.x0 is None else [("float", self.x0)])]
        return [
            (folder / f"{name}-{block}-of-{BLOCKS}", array, self.sequences.rows(block))
            for name, array in streams
            for block in self.sequences.blocks
        ]


def dequantized(w: QuantWeight) -> Array:
    """The weight as engines multiply it, (K, N) float16."""
    return dequant(w.codes, w.scales, w.zeros, w.g_idx, np.float16)
