"""A checkpoint of float weights in, a quantized one out: layer by layer; a run that was ended can be continued.

Everything is written to DST.unfinished: a file for each layer that is done, the activations after the last of them,
and state.json, which says what was done with which settings. A run that finds such a folder goes on from there, with
the same result to the byte. At the end the files are read back and proven, and the folder takes the name DST.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..convert.convert import convert
from ..ops.engine import memory, threads
from ..ranks.agree import on_every, on_first
from ..ranks.alone import SelfCommunicator
from ..ranks.communicator import Communicator
from .activations import Store
from .job import Job, QuantizationError, blocks, check_job, notes
from .layer import Solved
from .solver import Options
from .streams import Streams
from .writer import Writer, digest, prove, settle

# Called on every rank after each module: its name, its loss, modules done, modules in all.
Progress = Callable[[str, float, int, int], None]


@dataclass(frozen=True)
class Quantized:
    """What `quantize` did.

    losses     of each module, see solver.Solution
    damps      of each module whose Hessian needed more damping than asked for; None: it was rounded to the nearest
    notes      what the caller should know, a sentence each
    resumed    layers that an earlier run had done
    seconds    of this run
    """

    losses: dict[str, float]
    damps: dict[str, float | None]
    notes: tuple[str, ...]
    resumed: int
    seconds: float


def quantize(
    src: str | Path,
    dst: str | Path,
    tokens: np.ndarray,
    comm: Communicator | None = None,
    *,
    bits: int = 4,
    group_size: int = 128,
    sym: bool = True,
    order: str = "static",
    damp: float = 0.01,
    scale: str = "search",
    sweeps: int = 4,
    asymmetric_target: bool = True,
    modules: str | None = None,
    format: str | None = None,
    memory_gb: float | None = None,
    progress: Progress | None = None,
) -> Quantized:
    """Quantize the linear layers of a float model by GPTQ; to be called on every rank alike.

    src     a Hugging Face folder with float weights, of a family that load_model knows
    dst     must not exist, or be an empty folder; DST.unfinished beside it is this run's, or an earlier one's that
            goes on
    tokens  (sequences, length) integers, calibration text by the model's tokenizer
    comm    1, 2, 4 or 8 ranks, which share sequences and columns; the bytes written are the same for all of them and
            for any number of cores, as long as their BLAS is
    bits, group_size, sym, order, damp, scale, sweeps  see solver.Options
    asymmetric_target  each module makes up for the errors of the layers before it
    modules    regular expression; others stay as they are
    format     "gptq" (symmetric only), "gptq_v2" or "compressed-tensors"; None: gptq where symmetric, else gptq_v2
    memory_gb  for activations of this rank; beyond it they are kept in files. None: a quarter of the machine's memory

    Raises, on all ranks, QuantizationError or CheckpointError for what cannot be quantized, OSError for the disk.
    """
    began = time.perf_counter()
    comm = comm or SelfCommunicator()
    try:
        options = Options(bits, group_size, sym, order, damp, scale, sweeps)
    except ValueError as error:
        raise QuantizationError(str(error)) from None
    job = check_job(src, tokens, options, asymmetric_target, modules, format)
    if len(job.tokens) < comm.size:
        raise QuantizationError(f"{len(job.tokens)} calibration sequences cannot be shared by {comm.size} ranks")
    if comm.xp is np:
        threads.use_one_for_blas()  # each product by one thread, so that its bits do not depend on cores and ranks
        memory.keep_freed()  # a chunk's arrays serve the next one
    dst = Path(dst).resolve()
    _check_destination(job.src.resolve(), dst)
    with _unfinished(dst, comm) as folder:
        state = State.read(folder, job, comm)
        resumed = state.layers
        on_first(comm, lambda: _check_space(job, dst.parent))
        _run(job, folder, state, comm, memory_gb, progress)
        on_first(comm, lambda: _finish(job, folder, dst, state))
    damps = {name: damp for name, damp in state.damps.items() if damp != options.damp}
    few = [f"{name} {what}" for name, what in state.few.items()]
    return Quantized(state.losses, damps, (*notes(job), *few), resumed, time.perf_counter() - began)


@dataclass
class State:
    """What is done already: the same on every rank.

    layers   done, whose files are there
    losses, damps, digests  of their modules
    few      what was done where few tokens chose an expert, by module
    """

    fingerprint: dict[str, str]
    layers: int = 0
    losses: dict[str, float] = field(default_factory=dict)
    damps: dict[str, float | None] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    few: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, job: Job, comm: Communicator) -> State:
        """What an earlier run with the same source, tokens and settings has done; nothing, where there was none."""
        fingerprint = job.fingerprint()

        def found() -> State:
            path = folder / "state.json"
            if not path.is_file():
                return cls(fingerprint)
            old = cls(**json.loads(path.read_text(encoding="utf-8")))
            for what in {**old.fingerprint, **fingerprint}:
                before, now = old.fingerprint.get(what, "none"), fingerprint.get(what, "none")
                if before != now:
                    raise QuantizationError(
                        f"{folder} was begun with another {what}: {before} then, {now} now; give the old one to go "
                        "on, or remove the folder to begin again"
                    )
            return old

        return on_first(comm, found)

    def add(self, solved: dict[str, Solved]) -> None:
        """One more layer."""
        self.layers += 1
        for name, module in solved.items():
            self.losses[name], self.damps[name] = module.loss, module.damp
            self.digests[name] = digest(module.weight)
            if module.few is not None:
                self.few[name] = module.few

    def write(self, folder: Path) -> None:
        """Write the state to disk, after all files that it names."""
        temporary = folder / ".state.json"
        temporary.write_text(json.dumps(vars(self), indent=1), encoding="utf-8")
        settle(temporary, folder / "state.json")


def _run(
    job: Job, folder: Path, state: State, comm: Communicator, memory_gb: float | None, progress: Progress | None
) -> None:
    """The layers that are not done yet."""
    if state.layers == job.decoder.layers:
        return
    limit = _quarter_of_memory() if memory_gb is None else memory_gb * 1e9
    streams = Streams(job, comm, Store(limit, folder / f"activations-{comm.rank}"))
    kept = folder / "kept"
    if state.layers:
        on_every(comm, lambda: streams.restore(kept / str(state.layers)))
    else:
        streams.start()
    writer = Writer(job, folder)
    total = sum(job.wants(name) for block in blocks(job) for name in block.modules)
    done = len(state.losses)

    def report(name: str, module: Solved) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(name, module.loss, done, total)

    for layer in range(state.layers, job.decoder.layers):
        solved = streams.quantize_block(layer, report)
        state.add(solved)
        if state.layers < job.decoder.layers:
            # No rank goes on, and the state says nothing, before all activations are on disk.
            on_every(comm, lambda: streams.save(kept / str(state.layers)))
        weights = {name: module.weight for name, module in solved.items()}
        on_first(comm, lambda layer=layer, weights=weights: writer.layer(layer, weights))  # type: ignore[misc]
        on_first(comm, lambda: state.write(folder))
        on_first(comm, lambda layer=layer: shutil.rmtree(kept / str(layer), ignore_errors=True))  # type: ignore[misc]


def _finish(job: Job, folder: Path, dst: Path, state: State) -> None:
    """Give the files their names, prove the weights, and give the folder its name."""
    whole = folder / "whole"
    if not whole.is_dir():
        writer = Writer(job, folder)
        writer.rest()
        making = folder / "making"
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir()
        for path in [*folder.glob("layer-*"), *folder.glob("rest-*")]:
            _link(path, making / path.name)
        Writer(job, making).finish(list(state.losses), state.losses)
        prove(making, state.digests)
        making.rename(whole)
    if dst.is_dir():
        dst.rmdir()
    if job.options.order == "act" and convert(whole, dst).sorted:
        return
    whole.rename(dst)


def _link(path: Path, also: Path) -> None:
    """The same file under another name; a copy where the disk has no such links."""
    try:
        os.link(path, also)
    except OSError:
        shutil.copyfile(path, also)


@contextmanager
def _unfinished(dst: Path, comm: Communicator) -> Iterator[Path]:
    """The folder that a run writes to, locked against another one; removed when the run is done."""
    folder = dst.with_name(f"{dst.name}.unfinished")
    locks = []

    def lock() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("w")
        locks.append(file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise QuantizationError(f"{folder}: another run is writing there; wait for it, or end it") from None

    on_first(comm, lock)
    try:
        yield folder
        comm.barrier()
        on_first(comm, lambda: shutil.rmtree(folder))
    finally:
        for file in locks:
            file.close()


def _check_destination(src: Path, dst: Path) -> None:
    if dst == src or src in dst.parents or dst in src.parents:
        raise QuantizationError(f"{dst}: the destination must be neither the source {src}, nor in it, nor around it")
    if dst.exists() and not (dst.is_dir() and not any(dst.iterdir())):
        raise QuantizationError(f"{dst}: the destination must not exist, or be an empty folder")


def _check_space(job: Job, folder: Path) -> None:
    """Room for the result, and for what is kept of the activations before and after a layer."""
    whole = sum((job.src / name).stat().st_size for name in job.ckpt.files())
    kept = 2 * (1 + job.asymmetric) * 4 * job.tokens.size * job.decoder.hidden
    needed = whole * (job.options.bits + 1) // 16 + kept
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise QuantizationError(
            f"{folder}: about {needed / 1e9:.1f} GB are needed for the result and for activations between layers, "
            f"{free / 1e9:.1f} GB are free on that disk"
        )


def _quarter_of_memory() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 4
