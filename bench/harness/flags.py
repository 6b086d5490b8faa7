"""What the benches' flags hold: readers for argparse, whose errors name the value and the rule."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import cutpq as cq

# The checkpoint that the repository carries: what benches run on unless told otherwise.
CARRIED = Path(__file__).resolve().parents[2] / "tests" / "data" / "tiny-llama"

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def names(known: Iterable[str]) -> Callable[[str], tuple[str, ...]]:
    """A reader of "a,b" that accepts only known names, and puts them into the order of the known."""
    known = tuple(known)

    def read(text: str) -> tuple[str, ...]:
        wanted = text.split(",")
        for name in wanted:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(known)}")
        return tuple(name for name in known if name in wanted)

    return read


def at_least(least: int) -> Callable[[str], int]:
    """A reader of whole numbers from `least` on."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    return read


def positive_numbers(text: str) -> tuple[int, ...]:
    """ "4,1,2" -> (1, 2, 4): whole numbers of at least 1, ascending."""
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers of at least 1, such as 1,2,4")
    return tuple(sorted(set(map(int, parts))))


def prompts(text: str) -> tuple[tuple[int, int], ...]:
    """ "1x128,8x512" -> ((1, 128), (8, 512)): batch and length."""
    pairs = [part.split("x") for part in text.split(",")]
    if not all(len(pair) == 2 and all(n.isdecimal() and int(n) > 0 for n in pair) for pair in pairs):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of prompts such as 1x128,8x512")
    return tuple((int(batch), int(length)) for batch, length in pairs)


def codecs(text: str) -> tuple[cq.Codec, ...]:
    """ "mxfp4,int4-b8" -> their codecs, each once; "none" stands for no codec and adds none."""
    try:
        return tuple(dict.fromkeys(cq.codec(name) for name in text.split(",") if name != "none"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def nbytes(text: str) -> int:
    """ "4M" -> 4194304; K, M and G are powers of two."""
    words = re.fullmatch(r"(\d+)([KMG]?)B?", text.upper())
    if words is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes such as 512, 64K, 4M or 1G")
    return int(words[1]) * UNITS[words[2]]


def figure_file(text: str) -> Path:
    """The file that --plot writes; refused at once where matplotlib is missing, not after the measurement."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise argparse.ArgumentTypeError("needs matplotlib: pip install 'cutpq[plot]'") from None
    return Path(text)
