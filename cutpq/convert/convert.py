"""Rewrite a checkpoint so that the groups of every down projection are contiguous, in the format it has.

    y = act(x @ gate) * (x @ up) @ down

The features between the two products have no order of their own. So the rows of `down` are sorted by group (P, the
stable argsort of its g_idx), the columns of gate and up follow (arXiv 2402.04925, Algorithm 3, done once and for any
number of ranks), and y is the same. No size changes: each file is its source's header and then its tensors, of which
most are copied as they are.

What cannot be sorted this way stays as it is: attention's output projection, whose input features belong to heads,
and the layers that read the residual stream, whose order is a gather of x that every rank can do alone.
"""

from __future__ import annotations

import fcntl
import glob
import json
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint.claims import ModuleSpec
from ..checkpoint.errors import CheckpointWarning
from ..checkpoint.folder import Checkpoint, open_checkpoint
from ..checkpoint.groups import trivial_order
from ..checkpoint.mlp_names import MlpModules, mlps
from ..checkpoint.tensors import read_json
from ..ops.engine import threads
from ..weights.permutation import sorting_permutation
from ..weights.weight import is_ordered
from .proof import prove
from .raw_tensors import Move, Piece, RawFile, RawTensor, byte_pieces
from .reader import ConversionError, Reader

# Called with ("convert" or "prove", bytes done, bytes in all).
Progress = Callable[[str, int, int], None]

# Features along each axis of a module's tensors: input K, output N; axes of other names are not permuted.
_PLAIN = {"weight": ("N", "K"), "bias": ("N",)}
_AXES: dict[str, dict[str, tuple[str, ...]]] = {
    "gptq": {
        "qweight": ("K packed", "N"),
        "qzeros": ("G", "N packed"),
        "scales": ("G", "N"),
        "g_idx": ("K",),
        "bias": ("N",),
    },
    "compressed-tensors": {
        "weight_packed": ("N", "K packed"),
        "weight_scale": ("N", "G"),
        "weight_zero_point": ("N packed", "G"),
        "weight_shape": ("2",),
        "weight_g_idx": ("K",),
        "g_idx": ("K",),
        "bias": ("N",),
    },
}

# Weights in files that the loader does not read: a copy of them would be a second model with the old order.
_WEIGHT_FILES = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack"}
_FOLDERS_LEFT = {".git", ".cache"}

# Linux fault-around: one access to a memory map may map 64 KiB of cached pages.
_FAULT_AROUND = 1 << 16


@dataclass(frozen=True)
class Conversion:
    """What `convert` did.

    sorted      down projections whose rows were sorted; where there are none, nothing was written
    act_order   quantized modules whose groups are still scattered
    left_out    files of the source that the result does not have
    removed     folders DST.unfinished-PID of earlier runs into `dst` that were killed
    nbytes      of the safetensors files
    convert_s, prove_s   time for writing, and for the proof after it
    """

    sorted: tuple[str, ...]
    act_order: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    nbytes: int = 0
    convert_s: float = 0.0
    prove_s: float = 0.0


def convert(src: str | Path, dst: str | Path, progress: Progress | None = None) -> Conversion:
    """Write to the folder `dst` the checkpoint `src` with every down projection's groups contiguous, and prove it.

    The result has the same files, tensor names, shapes and dtypes, and computes the same. Its configs claim desc_act
    false where it became so: by a `dynamic` override for each sorted module, or globally where no act-ordered module
    is left. When all is written, every tensor is read back and compared (see proof.prove).

    dst       must not exist, or be an empty folder; neither inside `src` nor around it. The files are written to a
              folder beside it, DST.unfinished-PID, which takes the name `dst` at the end, or is removed. Those of
              earlier runs whose process is gone are removed first
    progress  called now and then with ("convert" or "prove", bytes done, bytes in all)

    A checkpoint without act-ordered down projections is left alone: nothing is written, and `sorted` is empty.
    Raises CheckpointError for a bad `src`; ConversionError, naming the tensor, where something else reads the
    features to be permuted or where the proof fails; OSError for a full or forbidden disk. `src` is never written to.
    """
    ckpt = open_checkpoint(src)
    src, dst = Path(src).resolve(), Path(dst).resolve()
    _check_destination(src, dst)
    files = [RawFile(src / name) for name in ckpt.files()]
    every = {tensor.name: tensor for file in files for tensor in file.tensors}
    orders = _read_orders(ckpt, Reader(ckpt.folder, max((t.nbytes for t in every.values()), default=0)))
    if not orders.perms:
        return Conversion((), orders.act_order)
    moves = _all_moves(ckpt, orders.perms, every)

    companions, left_out = _other_files(src, set(ckpt.files()))
    nbytes = sum(file.path.stat().st_size for file in files)
    removed = _remove_unfinished(dst)
    _check_space(dst.parent, nbytes + sum((src / name).stat().st_size for name in companions))
    unfinished = dst.with_name(f"{dst.name}.unfinished-{os.getpid()}")
    unfinished.mkdir()
    lock = _lock(unfinished)
    try:
        began = time.perf_counter()
        count = _counter(progress, "convert", nbytes)
        for file in files:
            _write_file(file, unfinished / file.path.name, moves, count)
        for name in companions:
            (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(src / name, unfinished / name)
        _rewrite_configs(ckpt, orders, unfinished)
        written = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CheckpointWarning)  # the loader has said it before
            prove(src, unfinished, files, moves, orders.perms, _counter(progress, "prove", nbytes))
        unfinished.rename(dst)
    except BaseException:  # an interrupt too must leave nothing behind
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    finally:
        if lock is not None:
            os.close(lock)
    downs = tuple(mlp.down for mlp in orders.perms)
    proved = time.perf_counter()
    return Conversion(downs, orders.act_order, left_out, removed, nbytes, written - began, proved - written)


@dataclass(frozen=True)
class _Orders:
    """perms      the MLPs whose down projection is act-ordered, each with the permutation that sorts it
    act_order  the other act-ordered modules
    in_place   the down projections that, sorted, have row k in group k // group_size
    trivial    whether every quantized module has that then
    """

    perms: dict[MlpModules, np.ndarray]
    act_order: tuple[str, ...]
    in_place: tuple[str, ...]
    trivial: bool


def _read_orders(ckpt: Checkpoint, reader: Reader) -> _Orders:
    downs = {mlp.down: mlp for mlp in mlps(ckpt)}
    perms: dict[MlpModules, np.ndarray] = {}
    act_order, in_place, trivial = [], [], True
    for name in ckpt.weights():
        g_idx = reader.before(_FAULT_AROUND + 4 * ckpt.shape(name)[0]).g_idx(name)
        scattered = not is_ordered(g_idx)
        if scattered and name in downs:
            perm = sorting_permutation(g_idx)
            perms[downs[name]], g_idx = perm, g_idx[perm]
        elif scattered:
            act_order.append(name)
        group_size = ckpt.spec(name).group_size
        if not np.array_equal(g_idx, trivial_order(len(g_idx), group_size)):
            trivial = False
        elif scattered:
            in_place.append(name)
    return _Orders(perms, tuple(act_order), tuple(in_place), trivial)


def _all_moves(ckpt: Checkpoint, perms: dict[MlpModules, np.ndarray], every: dict[str, RawTensor]) -> dict[str, Move]:
    """What happens to each tensor that changes, by tensor name.

    Raises ConversionError where a tensor of an MLP might depend on the order of its features in a way that is not
    known here.
    """
    members: dict[str, dict[str, RawTensor]] = {_parent(mlp): {} for mlp in perms}
    for name, tensor in every.items():
        above = name
        while above := above.rpartition(".")[0]:
            if above in members:
                members[above][name] = tensor
    quantized = set(ckpt.weights())
    moves: dict[str, Move] = {}
    for mlp, perm in perms.items():
        specs = {name: ckpt.spec(name) for name in (mlp.down, *mlp.first) if name in quantized}
        moves |= _moves(mlp, perm, members[_parent(mlp)], specs)
    return moves


def _moves(
    mlp: MlpModules, perm: np.ndarray, members: dict[str, RawTensor], specs: dict[str, ModuleSpec]
) -> dict[str, Move]:
    """The moves of one MLP, of whose tensors all are in `members`; a module without a spec is not quantized."""
    columns = np.concatenate([perm, perm + len(perm)]) if mlp.fused else perm
    unknown = dict(members)
    moves: dict[str, Move] = {}
    for module, feature, features_perm in [(mlp.down, "K", perm)] + [(name, "N", columns) for name in mlp.first]:
        spec = specs.get(module)
        for suffix, axes in (_AXES[spec.format] if spec else _PLAIN).items():
            tensor = unknown.pop(f"{module}.{suffix}", None)
            move = tensor and _move(tensor, axes, feature, features_perm, spec.bits if spec else None, mlp)
            if tensor and move:
                moves[tensor.name] = move
    _refuse_unknown(mlp, len(perm), unknown.values())
    return moves


def _parent(mlp: MlpModules) -> str:
    return mlp.down.rpartition(".")[0]


def _move(
    tensor: RawTensor, axes: tuple[str, ...], feature: str, perm: np.ndarray, bits: int | None, mlp: MlpModules
) -> Move | None:
    """How one tensor follows a permutation of its module's `feature`s; None where it does not have them."""
    for axis, what in enumerate(axes):
        if what == f"{feature} packed":
            return Move(axis, perm, bits)
        if what == feature:
            if len(tensor.shape) <= axis or tensor.shape[axis] != len(perm):
                raise ConversionError(
                    f"{tensor.path}: {tensor.name}: expected {len(perm)} features along axis {axis}, to go with "
                    f"{mlp.down}, found shape {tensor.shape}"
                )
            return Move(axis, perm)
    return None


def _refuse_unknown(mlp: MlpModules, features: int, unknown: Iterable[RawTensor]) -> None:
    """Raise where an unknown tensor belongs to one of the modules, or stands beside them and has such an axis."""
    modules = tuple(f"{name}." for name in (mlp.down, *mlp.first))
    for tensor in unknown:
        if features in tensor.shape or (tensor.name.startswith(modules) and np.prod(tensor.shape) > 1):
            raise ConversionError(
                f"{tensor.path}: {tensor.name}, shape {tensor.shape}, may depend on the order of the {features} "
                f"features between {mlp.up} and {mlp.down}, and it is not known how: nothing was converted. Merge it "
                "into the weights, or remove it, first"
            )


def _check_destination(src: Path, dst: Path) -> None:
    if dst == src or src in dst.parents or dst in src.parents:
        raise ConversionError(f"{dst}: the destination must be neither the source {src}, nor in it, nor around it")
    if dst.exists() and not (dst.is_dir() and not any(dst.iterdir())):
        raise ConversionError(f"{dst}: the destination must not exist, or be an empty folder")


def _remove_unfinished(dst: Path) -> tuple[str, ...]:
    """Remove the DST.unfinished-PID of runs that were killed; their names.

    A run that goes on has a lock on its folder, which also holds between containers that see other process numbers.
    """
    removed = []
    for folder in sorted(dst.parent.glob(f"{glob.escape(dst.name)}.unfinished-*")):
        pid = folder.name.rpartition("-")[2]
        if not pid.isdecimal() or not folder.is_dir() or folder.is_symlink() or _is_running(int(pid)):
            continue
        lock = _lock(folder)
        if lock is not None:
            shutil.rmtree(folder)
            os.close(lock)
            removed.append(folder.name)
    return tuple(removed)


def _lock(folder: Path) -> int | None:
    """A file descriptor that locks the folder until it is closed or the process ends; None where another has it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _is_running(pid: int) -> bool:
    """Whether this machine has a process of that number."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _check_space(folder: Path, nbytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        raise ConversionError(f"{folder}: {nbytes / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB are free on that disk")


def _other_files(src: Path, files: set[str]) -> tuple[list[str], tuple[str, ...]]:
    """Files of the folder to copy, and those to leave out."""
    copied: list[str] = []
    left: list[str] = []
    for folder, subfolders, names in os.walk(src):
        subfolders[:] = sorted(set(subfolders) - _FOLDERS_LEFT)
        for name in sorted(names):
            relative = str((Path(folder) / name).relative_to(src))
            if relative not in files:
                (left if Path(name).suffix in _WEIGHT_FILES else copied).append(relative)
    return copied, tuple(left)


def _counter(progress: Progress | None, what: str, total: int) -> Callable[[int], None]:
    done = 0

    def count(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress is not None:
            progress(what, done, total)

    return count


def _write_file(file: RawFile, target: Path, moves: dict[str, Move], count: Callable[[int], None]) -> None:
    try:
        # The writes end before the file is closed, also after an error: another file may have its descriptor then.
        with target.open("xb", buffering=0) as out, closing(_written(file, moves, out.fileno())) as written:
            for nbytes in written:
                count(nbytes)
    except OSError as e:
        raise OSError(e.errno, e.strerror, e.filename or str(target)) from e  # a write does not know its file


def _written(file: RawFile, moves: dict[str, Move], out: int) -> Generator[int, None, None]:
    """Threads write the result, those bytes of `file` with the tensors permuted that move; the bytes of each write."""

    def writes() -> Iterator[Callable[[], int]]:
        offset = 0
        for nbytes, piece in _pieces(file, moves):
            yield partial(_write, out, offset, piece)
            offset += nbytes

    return threads.in_order(writes())


def _pieces(file: RawFile, moves: dict[str, Move]) -> Iterator[Piece]:
    yield from byte_pieces(file.path, 0, file.header_bytes)
    for tensor in file.tensors:
        move = moves.get(tensor.name)
        yield from tensor.permuted(move) if move else byte_pieces(tensor.path, tensor.start, tensor.stop)


def _write(out: int, offset: int, make: Callable[[], np.ndarray]) -> int:
    """Write a piece at its place in the file; its bytes."""
    data = np.ascontiguousarray(make()).data.cast("B")
    done = 0
    while done < len(data):
        done += os.pwrite(out, data[done:], offset + done)
    return done


def _rewrite_configs(ckpt: Checkpoint, orders: _Orders, target: Path) -> None:
    """Make the configs that claim desc_act claim what became of it. compressed-tensors' say nothing that ceased to be.

    An engine that is told desc_act false takes row k for one of group k // group_size. So it is claimed only where
    this is so, which it is unless the writer made groups of unequal sizes.
    """
    if ckpt.spec(next(iter(orders.perms)).down).format != "gptq":
        return
    modules = {name.rpartition(".")[0] for name in ckpt.tensors()}
    for file, key in (("config.json", "quantization_config"), ("quantize_config.json", None)):
        path = target / file
        whole = read_json(path) if path.is_file() else {}
        claims = whole if key is None else whole.get(key)
        if claims:
            _release(claims, orders.in_place, modules, everything=orders.trivial)
            path.write_text(json.dumps(whole, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _release(claims: dict[str, Any], downs: Sequence[str], modules: set[str], everything: bool) -> None:
    """Claim desc_act false for the modules `downs`, or for all, in a GPTQ config; what else it claims of them stays.

    `dynamic` maps patterns to overrides, and the first pattern that matches a module counts. So the new entries come
    first, and carry on what the entry that counted until now says.
    """
    dynamic = claims.get("dynamic") or {}
    if everything:
        claims["desc_act"] = False
        for values in dynamic.values():
            if values and "desc_act" in values:
                values["desc_act"] = False
        return
    by_override: dict[str, list[str]] = {}
    for name in downs:
        pattern, override = _first_match(dynamic, name)
        if not pattern.startswith("-:") and override.get("desc_act", claims.get("desc_act", False)):
            by_override.setdefault(json.dumps({**override, "desc_act": False}), []).append(name)
    new = {
        f"+:^{pattern}$": json.loads(override)
        for override, names in by_override.items()
        for pattern in _patterns(names, modules)
    }
    if new:
        claims["dynamic"] = {**new, **dynamic}


def _first_match(dynamic: dict[str, Any], module: str) -> tuple[str, dict[str, Any]]:
    for pattern, override in dynamic.items():
        if re.match(re.sub(r"^[-+]:", "", pattern), module):
            return pattern, override or {}
    return "", {}


def _patterns(names: list[str], modules: set[str]) -> list[str]:
    """Regular expressions that match the modules `names` and no other: with \\d+ for all layers where that is so."""
    by_form: dict[str, list[str]] = {}
    for name in names:
        form = r"\.".join(r"\d+" if part.isdecimal() else re.escape(part) for part in name.split("."))
        by_form.setdefault(form, []).append(name)
    patterns = []
    for form, of_form in by_form.items():
        alike = {module for module in modules if re.fullmatch(form, module)}
        patterns += [form] if alike == set(of_form) else [re.escape(name) for name in of_form]
    return patterns
