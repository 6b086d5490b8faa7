"""What the benches' flags hold: readers for argparse, whose errors name the value and the rule."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable

from cutpq.codecs.codec import Codec
from cutpq.codecs.codec import codec as find_codec

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


def positive_numbers(text: str) -> tuple[int, ...]:
    """ "4,1,2" -> (1, 2, 4): whole numbers of at least 1, ascending."""
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers of at least 1, such as 1,2,4")
    return tuple(sorted(set(map(int, parts))))


def codecs(text: str) -> tuple[Codec, ...]:
    """ "mxfp4,int4-b8" -> their codecs."""
    try:
        return tuple(dict.fromkeys(map(find_codec, text.split(","))))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def nbytes(text: str) -> int:
    """ "4M" -> 4194304; K, M and G are powers of two."""
    words = re.fullmatch(r"(\d+)([KMG]?)B?", text.upper())
    if words is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes such as 512, 64K, 4M or 1G")
    return int(words[1]) * UNITS[words[2]]
