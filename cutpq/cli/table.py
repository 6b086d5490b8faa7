"""Tables of the commands: rows that are alike as one, columns in line, long sentences below."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

# A part of a module's name that is a number, of a layer or an expert; the 1 of w1 is none.
_NUMBER = re.compile(r"(?<=\.)[0-9]{1,18}(?=\.|$)")


class Notes:
    """Sentences too long for a table: a mark in the row, the sentence once below."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def marks(self, sentences: Sequence[str]) -> str:
        """The marks of these sentences, such as "[1] [3]"."""
        return " ".join(f"[{self._numbers.setdefault(s, len(self._numbers) + 1)}]" for s in sentences)

    def print(self) -> None:
        """Print each sentence behind its mark."""
        if self._numbers:
            print()
        for sentence, number in self._numbers.items():
            print(f"[{number}] {sentence}")


def alike(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows that differ in the numbers of their names only, as one: ("layers.{0..31}.mlp.up_proj  x32", row)."""
    alike: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        key = json.dumps({**row, "name": _NUMBER.sub("#", row["name"])}, default=str)
        alike.setdefault(key, []).append(row)
    for same in alike.values():
        for names in collapse([row["name"] for row in same]):
            yield names, same[0]


def collapse(names: Sequence[str]) -> list[str]:
    """Names that differ in their numbers only, as one with runs of numbers such as {0..31}, and how many there are."""
    by_texts: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        by_texts.setdefault(tuple(_NUMBER.split(name)), []).append(name)
    shown = []
    for texts, alike in by_texts.items():
        numbers = [[int(n) for n in _NUMBER.findall(name)] for name in alike]
        distinct = [sorted(set(column)) for column in zip(*numbers, strict=True)]
        if len(alike) > 1 and math.prod(map(len, distinct)) == len(alike):  # every combination of numbers is there
            pieces = [text + _runs(n) for text, n in zip(texts, distinct, strict=False)]
            shown.append("".join(pieces) + texts[-1] + f"  x{len(alike)}")
        else:
            shown += alike
    return shown


def _runs(numbers: list[int]) -> str:
    """[3] -> "3", [0, 1, 2, 5] -> "{0..2,5}"."""
    if len(numbers) == 1:
        return str(numbers[0])
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    return "{" + ",".join(f"{a}..{b}" if b > a else str(a) for a, b in zip(starts, ends, strict=True)) + "}"


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns two spaces apart; numbers to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    columns = list(zip(header, *cells, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [all(re.fullmatch(r"[\d.]+", cell) for cell in column[1:]) for column in columns]
    for row in [list(header), *cells]:
        aligned = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True))
        print("  ".join(aligned).rstrip())


def count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
