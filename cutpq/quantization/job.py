"""What is to be quantized and how, checked before anything is computed."""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint.errors import CheckpointError
from ..checkpoint.folder import Checkpoint, open_checkpoint
from ..model.decoder import Decoder
from ..model.families import read_decoder
from .float_model import Block, FloatModel
from .solver import Options

FORMATS = ("gptq", "gptq_v2", "compressed-tensors")


class QuantizationError(ValueError):
    """Something cannot be quantized as asked: the message names the value, the rule and what to do."""


@dataclass(frozen=True)
class Job:
    """A source, its calibration tokens, and the settings.

    src         folder of float weights, opened as ckpt, of the kind `decoder`
    tokens      (n, length) int64
    options     of the layer solver
    asymmetric  whether modules make up for errors of the layers before them
    modules     regular expression; a module whose name it does not find stays as it is. None for all
    format      one of FORMATS
    """

    src: Path
    ckpt: Checkpoint
    decoder: Decoder
    tokens: np.ndarray
    options: Options
    asymmetric: bool
    modules: str | None
    format: str

    def wants(self, name: str) -> bool:
        """Whether a module is to be quantized."""
        return self.modules is None or re.search(self.modules, name) is not None

    def fingerprint(self) -> dict[str, str]:
        """What must be the same for a run to go on where another has ended."""
        files = [self.src / "config.json", *(self.src / name for name in sorted(self.ckpt.files()))]
        found = {f"source file {path.name}": _identity(path) for path in files}
        digest = hashlib.sha256(np.ascontiguousarray(self.tokens).tobytes()).hexdigest()
        found["calibration tokens"] = f"{self.tokens.shape} sha256 {digest}"
        settings: dict[str, Any] = asdict(self.options) | {
            "asymmetric_target": self.asymmetric, "modules": self.modules, "format": self.format
        }  # fmt: skip
        return found | {f"setting {name}": repr(value) for name, value in settings.items()}


def check_job(
    src: str | Path, tokens: np.ndarray, options: Options, asymmetric: bool, modules: str | None, format: str | None
) -> Job:
    """Raise QuantizationError or CheckpointError for what cannot be quantized; every rank finds the same."""
    ckpt = open_checkpoint(src)
    if ckpt.weights():
        raise QuantizationError(
            f"{src}: expected float weights, found {len(ckpt.weights())} quantized modules such as "
            f"{ckpt.weights()[0]}; quantize the model that these were made from"
        )
    decoder = read_decoder(ckpt)
    if modules is not None:
        try:
            re.compile(modules)
        except re.error as e:
            raise QuantizationError(f"--modules: expected a regular expression, found {modules!r} ({e})") from None
    label = format or ("gptq" if options.sym else "gptq_v2")
    if label not in FORMATS:
        raise QuantizationError(f"format {label!r} is not one of {', '.join(FORMATS)}")
    if label == "gptq" and not options.sym:
        raise QuantizationError(
            "format gptq stores zero points less one, so that it cannot say 0, and engines refuse or misread it in "
            "asymmetric checkpoints: take gptq_v2 or compressed-tensors, or --sym"
        )
    job = Job(Path(src), ckpt, decoder, _check_tokens(tokens, decoder), options, asymmetric, modules, label)
    _check_modules(job)
    return job


def blocks(job: Job) -> list[Block]:
    """All decoder layers; of their tensors only the norms have been read."""
    model = FloatModel(job.ckpt, job.decoder, job.tokens.shape[1], np)
    return [model.block(layer) for layer in range(job.decoder.layers)]


def notes(job: Job) -> list[str]:
    """What the caller should know before a long run, a sentence each."""
    few: dict[int, list[str]] = {}
    for block in blocks(job):
        for name in block.modules:
            K, _ = block.shape(name)
            if job.wants(name) and job.tokens.size < K:
                few.setdefault(K, []).append(name)
    found = [
        f"{job.tokens.size} calibration tokens are fewer than the K={K} inputs of {names[0]}"
        + (f" and {len(names) - 1} more modules" if len(names) > 1 else "")
        + ": their Hessians have no inverse without damping, and the result is poor; give at least "
        f"{K} tokens, better {16 * K}"
        for K, names in few.items()
    ]
    if job.options.order == "act":
        found.append(
            "order act scatters the rows of a group over the matrix: vLLM since 0.30 ignores g_idx and computes "
            "nonsense from such files, others pay for it at run time; order static is as accurate and needs no g_idx"
        )
    return found


def _check_tokens(tokens: np.ndarray, decoder: Decoder) -> np.ndarray:
    tokens = np.asarray(tokens)
    if tokens.ndim != 2 or tokens.dtype.kind not in "iu" or not tokens.size or tokens.shape[1] < 2:
        raise QuantizationError(
            f"calibration tokens must be integers of shape (sequences, length), length at least 2, got {tokens.dtype} "
            f"of shape {tokens.shape}"
        )
    wrong = (tokens < 0) | (tokens >= decoder.vocabulary)
    if wrong.any():
        row, column = map(int, np.argwhere(wrong)[0])
        raise QuantizationError(
            f"calibration token {tokens[row, column]} of sequence {row} at {column} is out of range: the vocabulary "
            f"is 0 .. {decoder.vocabulary - 1}; were they made by this model's tokenizer?"
        )
    if tokens.shape[1] > decoder.max_positions:
        raise QuantizationError(
            f"calibration sequences of {tokens.shape[1]} tokens are longer than the {decoder.max_positions} positions "
            "of the model"
        )
    return tokens.astype(np.int64)


def _check_modules(job: Job) -> None:
    """The sizes of every module that is wanted, before the first is read."""
    wanted = [(name, block.shape(name)) for block in blocks(job) for name in block.modules if job.wants(name)]
    if not wanted:
        raise QuantizationError(f"--modules {job.modules!r} finds no module of {job.src}")
    bits, size = job.options.bits, job.options.group_size
    for name, (K, N) in wanted:
        for what, value in (("K", K), ("N", N)):
            if value * bits % 32:
                raise QuantizationError(
                    f"{name}: {what}={value} codes of {bits} bits do not fill whole 32-bit words; leave the module "
                    "out by --modules, or take other --bits"
                )
        if size != -1 and K % size:
            raise QuantizationError(
                f"{name}: K={K} is not a multiple of group_size={size}; take a divisor of K, or -1 for one group"
            )


def _identity(path: Path) -> str:
    """A file's size, time and the sha256 of its first MiB, which holds a safetensors file's header."""
    try:
        stat = path.stat()
        with path.open("rb") as file:
            head = hashlib.sha256(file.read(1 << 20)).hexdigest()
    except OSError as e:
        raise CheckpointError(f"{path}: expected a readable file ({e.strerror})") from e
    return f"{stat.st_size} bytes, modified at {stat.st_mtime_ns} ns, begins with sha256 {head}"
