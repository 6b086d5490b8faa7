"""The names of block codecs: ELEM[-bBLOCK][-SCALE][-RULE], for example e2m1, int4-b8, e2m2-b16-e5m0-rceil.

    ELEM    e1m1 e2m0 e1m2 e2m1 e3m0 e2m2 e1m3 e3m1 e2m3 e3m2 e4m3 e5m2, int2 to int8
    BLOCK   8 16 32 64 128 elements that share a scale; 32 unless named
    SCALE   e8m0 e5m0 e4m0 (powers of two, saturating), e4m3, float16 (also f16, fp16); e8m0 unless named
    RULE    floor, even, rceil (see formats.RULES); floor unless named, even for a scale with a mantissa

or one of mxfp4, mxfp6-e2m3, mxfp6-e3m2, mxfp8-e4m3, mxfp8-e5m2, mxint8 and nvfp4 (e2m1-b16-e4m3, single
level: without a scale of the whole tensor). After any name, +hadamard asks for the rotation.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable

from .formats import BLOCKS, ELEMENTS, RULES, SCALES, Element, Scale

ALIASES = {
    "mxfp4": "e2m1",
    "mxfp6-e2m3": "e2m3",
    "mxfp6-e3m2": "e3m2",
    "mxfp8-e4m3": "e4m3",
    "mxfp8-e5m2": "e5m2",
    "mxint8": "int8",
    "nvfp4": "e2m1-b16-e4m3",
}
_SPELLINGS = {"f16": "float16", "fp16": "float16"}
_NAME = re.compile(r"([a-z0-9]+)(?:-b(\d+))?(?:-([a-z]+\d[a-z0-9]*))?(?:-([a-z]+))?")


def parse(name: str) -> tuple[Element, int, Scale, str, bool]:
    """Element, block, scale, rule, and whether blocks are rotated, of the codec with this name.

    Raises ValueError with the grammar and the nearest names for a name that is none.
    """
    asked, plus, option = str(name).lower().partition("+")
    words = _NAME.fullmatch(ALIASES.get(asked, asked))
    if words and (plus + option) in ("", "+hadamard"):
        element, block, scale, rule = words[1], int(words[2] or 32), words[3] or "e8m0", words[4]
        scale = _SPELLINGS.get(scale, scale)
        if element in ELEMENTS and block in BLOCKS and scale in SCALES and rule in (None, *RULES):
            return ELEMENTS[element], block, SCALES[scale], rule or _default_rule(SCALES[scale]), bool(option)
    combinations = itertools.product(ELEMENTS.values(), BLOCKS, SCALES.values(), RULES)
    every_name = itertools.starmap(_short_name, combinations)
    near = difflib.get_close_matches(asked, [*ALIASES, *every_name], 3)
    raise ValueError(
        f"no codec is called {name!r}; a name is ELEM[-bBLOCK][-SCALE][-RULE], where ELEM is "
        f"{_either(ELEMENTS)}, BLOCK {_either(BLOCKS)}, SCALE {_either(SCALES)}, RULE {_either(RULES)}; "
        f"or it is {_either(ALIASES)}" + (f". Nearest: {', '.join(near)}" if near else "")
    )


def shortest(element: Element, block: int, scale: Scale, rule: str) -> str:
    """The alias of this codec, or else its name without what the grammar takes as default."""
    short = _short_name(element, block, scale, rule)
    return next((alias for alias, long in ALIASES.items() if long == short), short)


def _short_name(element: Element, block: int, scale: Scale, rule: str) -> str:
    parts = [element.name]
    parts += [f"b{block}"] * (block != 32)
    parts += [scale.name] * (scale.name != "e8m0")
    parts += [rule] * (rule != _default_rule(scale))
    return "-".join(parts)


def _default_rule(scale: Scale) -> str:
    return "even" if scale.mantissa_bits else "floor"


def _either(choices: Iterable[object]) -> str:
    *most, last = map(str, choices)
    return f"{', '.join(most)} or {last}"
