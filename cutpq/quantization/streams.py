"""The two streams of activations through a model that is being quantized, one half of a block after the other.

x is what the quantized layers give, x0 what the float model would have given. A module reads X in the first stream and
X0 in the second. Two sums over all tokens are taken: H = 2/n X^T X, and drift = 2/n X^T (Y - X W), what its output X W
lacks of the output Y that is wanted. Then the module is solved, and x passes through its dequantized weight.

Y is X0 W, the output in the float model. The output of a half's last module is added to x, which has the errors of all
layers before: there Y is X0 W + x0 - x, so that the sum comes as near to the float model's as the module can bring it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..array import Array, array_module, to_numpy
from ..ops.engine.product import fill_symmetric, gram, product
from ..ops.formulas import dequant
from ..ranks.agree import on_every
from ..ranks.communicator import Communicator
from ..weights.weight import QuantWeight
from .activations import BLOCKS, Sequences, Store
from .float_model import Block, FloatModel, Half, Linear, Tokens
from .job import Job, QuantizationError
from .layer import Solved, own_columns, own_panels, solve_together

# Called with each module's name and what it became.
Report = Callable[[str, Solved], None]

# The quantized stream, and the float one, which there need not be.
Both = tuple[np.ndarray, np.ndarray | None]


# Tokens for each input of a module, below which an expert does without the asymmetric target, and below which it is
# rounded to the nearest. With Gaussian inputs for a layer of the small Llama, and a float stream that differs by 1 % of
# noise, the target fits the noise: at 1 token for each input its error is 4 times that of rounding to the nearest, that
# of GPTQ alone half of it. GPTQ alone is better than rounding down to 1/64, the fewest tried. Of three random Mixtrals
# with 2 to 3 tokens for each input, 4 bits, KL on other tokens is 13 to 20 % lower without the target.
FOR_TARGET, FOR_HESSIAN = 4, 1 / 64

# A large Hessian is summed in pieces of so many bytes, of which some are in memory at once.
_SUM_BYTES = 1 << 28


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
        chunks = list(self.sequences.chunks())
        for rows, x in zip(chunks, self.model.embed(tokens[rows] for rows in chunks), strict=True):
            self.x[rows] = x
            if self.x0 is not None:
                self.x0[rows] = self.x[rows]

    def quantize_block(self, layer: int, report: Report) -> dict[str, Solved]:
        """Quantize the modules of a decoder layer; both streams go on to the next, unless it is the last."""
        block = self.model.block(layer)
        ends = layer == self.job.decoder.layers - 1
        solved = self._half(block, block.attention, (self.x, self.x0), report, ends=False)
        after: Both = self.x, self.x0
        if len(block.mlp) > 1 and not ends:  # experts read the streams as they were before all of them
            after = self._copy(self.x), None if self.x0 is None else self._copy(self.x0)
        for half in block.mlp:
            solved |= self._half(block, half, after, report, ends)
        if after[0] is not self.x:
            self.store.drop(self.x)
            if self.x0 is not None:
                self.store.drop(self.x0)
            self.x, self.x0 = after
        return solved

    def _half(self, block: Block, half: Half, after: Both, report: Report, ends: bool) -> dict[str, Solved]:
        """after += write(act(read(norm(x)))): the modules `read` solved together, then the module `write`.

        after  where both streams go on, which may be the streams themselves
        """
        tokens = {rows.start: half.tokens(self._at(self.x, rows)) for rows in self.sequences.chunks()}
        seen = None if half.choose is None else self._count(tokens)
        readers = [block.linear(name) for name in half.read]
        H, drift = self._sums_of_norm(half, tokens, readers)
        solved = self._solve(half.read, readers, H, drift, seen, report)
        del H, drift  # large ones, here and below, as soon as they are not needed
        quantized = [self._forward(name, linear, solved) for name, linear in zip(half.read, readers, strict=True)]
        writer = block.linear(half.write)
        middle = self._new(writer.weight.shape[0])
        wanted = self._middle(half, block, tokens, readers, quantized, writer, middle, None if ends else after[1])
        del readers, quantized
        H, drift = self._sums_of_middle(half, tokens, middle, wanted, writer.weight)
        solved |= self._solve((half.write,), [writer], H, drift, seen, report)
        del H, drift
        last = self._forward(half.write, writer, solved)
        for rows in self.sequences.chunks() if not ends else ():
            some = tokens[rows.start]
            self._add(block, after[0][rows], some, last(some.of(self._at(middle, rows))))
        self.store.drop(middle)
        return solved

    def _count(self, tokens: dict[int, Tokens]) -> int:
        """How many tokens of all ranks choose an expert."""
        mine = sum(len(some.rows) for some in tokens.values() if not isinstance(some.rows, slice))
        return int(self.comm.all_gather(self.comm.xp.asarray([mine])).sum())

    def _sums_of_norm(
        self, half: Half, tokens: dict[int, Tokens], readers: Sequence[Linear]
    ) -> tuple[Array, Array | None]:
        """Hessian and drift of what the readers multiply."""

        def inputs(rows: slice) -> tuple[Array, Array | None]:
            some = tokens[rows.start]
            h = some.of(half.norm(self._at(self.x, rows)))
            return h, None if self.x0 is None else some.of(half.norm(self._at(self.x0, rows))) - h

        K = readers[0].weight.shape[0]
        H, cross = self._sums(half.read[0], inputs, K, None if self.x0 is None else slice(0, K))
        if cross is None:
            return H, None
        own = [linear.weight[:, n] for linear in readers for n in own_panels(linear.weight.shape[1], self.comm)]
        parts = [product(cross, weight) for weight in own]
        return H, array_module(H).concatenate(parts, axis=1) if parts else cross[:, :0]

    def _middle(
        self, half: Half, block: Block, tokens: dict[int, Tokens], readers: Sequence[Linear],
        quantized: Sequence[Linear], writer: Linear, middle: np.ndarray, after0: np.ndarray | None,
    ) -> np.ndarray | None:  # fmt: skip
        """What `write` multiplies, to `middle`; the float stream goes on to `after0`, if any.

        Returns what the output of `write` should be for each token, or None without a float stream.
        """
        wanted = None if self.x0 is None else self._new(writer.weight.shape[1])
        for rows in self.sequences.chunks():
            some = tokens[rows.start]
            h = some.of(half.norm(self._at(self.x, rows)))
            middle[rows][some.rows] = to_numpy(half.act([linear(h) for linear in quantized]))
            if self.x0 is None or wanted is None:
                continue
            x0 = self._at(self.x0, rows)
            h = half.norm(x0)

            def write(of: Tokens, h: Array = h) -> Array:
                return product(half.act([linear(of.of(h)) for linear in readers]), writer.weight)

            y = write(some)
            # What x lacks is shared by all experts of a token: none of them makes up for it.
            lacking = 0 if half.choose else block.lacking(self._at(self.x, rows), x0)
            wanted[rows][some.rows] = to_numpy(y + lacking)
            if after0 is not None:
                others = half.tokens(x0)  # in the float model other tokens may choose this expert
                y = y if others is some else write(others)
                self._add(block, after0[rows], others, y if writer.bias is None else y + writer.bias)
        return wanted

    def _sums_of_middle(
        self, half: Half, tokens: dict[int, Tokens], middle: np.ndarray, wanted: np.ndarray | None, weight: Array
    ) -> tuple[Array, Array | None]:
        """Hessian and drift of what `write` multiplies: X^T (Y - X W) is X^T Y, less H W."""

        def inputs(rows: slice) -> tuple[Array, Array | None]:
            some = tokens[rows.start]
            return some.of(self._at(middle, rows)), None if wanted is None else some.of(self._at(wanted, rows))

        own = own_panels(weight.shape[1], self.comm)
        columns = None if wanted is None else own_columns(weight.shape[1], self.comm)
        H, drift = self._sums(half.write, inputs, len(weight), columns)
        if wanted is not None and columns is not None and drift is not None:
            self.store.drop(wanted)
            for n in own:
                drift[:, n.start - columns.start : n.stop - columns.start] -= product(H, weight[:, n])
        return H, drift

    def _sums(
        self, name: str, inputs: Callable[[slice], tuple[Array, Array | None]], K: int, columns: slice | None
    ) -> tuple[Array, Array | None]:
        """2/n X^T X, and these columns of 2/n X^T Y, some rows at a time: partial sums stay small.

        inputs   rows of a chunk -> X (n, K) and Y (n, any) or None
        columns  of Y; None where there is no Y
        """
        xp = self.comm.xp
        H = xp.empty((K, K), np.float32)
        cross = None if columns is None else xp.empty((K, columns.stop - columns.start), np.float32)
        step = max(8, _SUM_BYTES // (4 * K))
        for start in range(0, K, step):
            own = slice(start, min(start + step, K))

            def terms(rows: slice, own: slice = own) -> list[Array]:
                x, y = inputs(rows)
                return gram(x, own) if y is None else [*gram(x, own), product(x[:, own].T, y)]

            found = self._finite(self.sequences.sums(terms), name)
            if cross is not None:
                cross[own] = found.pop()[:, columns]
            fill_symmetric(H, own, found)
        return H, cross

    def _add(self, block: Block, x: np.ndarray, tokens: Tokens, y: Array) -> None:
        """Add what a half gives for some tokens to their rows of x, in place."""
        before = self.comm.xp.asarray(x[tokens.rows])
        x[tokens.rows] = to_numpy(block.add(before, tokens.weighed(y)))

    def _solve(
        self, names: Sequence[str], linears: Sequence[Linear], H: Array, drift: Array | None, seen: int | None,
        report: Report,
    ) -> dict[str, Solved]:  # fmt: skip
        wanted = [i for i, name in enumerate(names) if self.job.wants(name)]
        if not wanted:
            return {}
        weights = [linears[i].weight for i in wanted]
        few = None
        if seen is not None and seen < FOR_HESSIAN * len(H):
            few = f"was rounded to the nearest: only {seen} calibration tokens chose its expert"
            H = array_module(H).eye(len(H), dtype=np.float32)
        elif seen is not None and drift is not None and seen < FOR_TARGET * len(H):
            few = f"does not make up for the layers before it: only {seen} calibration tokens chose its expert"
        drift = None if few else drift
        if drift is not None and len(wanted) < len(names):
            own = [self._own(linear.weight.shape[1]) for linear in linears]
            ends = np.cumsum([0, *(columns.stop - columns.start for columns in own)])
            drift = array_module(H).concatenate([drift[:, ends[i] : ends[i + 1]] for i in wanted], axis=1)
        solved = solve_together(weights, H, drift, self.job.options, self.comm)
        found = dict(zip([names[i] for i in wanted], (replace(module, few=few) for module in solved), strict=True))
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

    def _copy(self, x: np.ndarray) -> np.ndarray:
        copy = self._new(x.shape[1])
        copy[...] = x
        return copy

    def _own(self, N: int) -> slice:
        return own_columns(N, self.comm)

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
