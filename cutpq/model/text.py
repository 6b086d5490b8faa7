"""Text to tokens and back, by the files that a checkpoint's folder has for it: tokenizer.json and a chat template."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..checkpoint.errors import CheckpointError
from ..checkpoint.tensors import read_json

INSTALL = "pip install 'cutpq[text]'"
UNKNOWN = "\N{REPLACEMENT CHARACTER}"  # what a decoder makes of bytes that are no character, or only a part of one


class NoTokenizerError(Exception):
    """A folder's text cannot be made tokens: its tokenizer.json is missing, or the package that reads it."""


class Tokenizer:
    """tokenizer.json of a folder, read by the package `tokenizers`.

    Raises NoTokenizerError without file or package, CheckpointError for a file that is no tokenizer and for a folder
    that is none.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise CheckpointError(f"{self.folder}: expected a model's folder, found no such folder")
        path = self.folder / "tokenizer.json"
        if not path.is_file():
            raise NoTokenizerError(f"{self.folder} has no tokenizer.json")
        try:
            from tokenizers import Tokenizer as Fast
        except ImportError:
            raise NoTokenizerError(f"tokenizer.json needs the package tokenizers: {INSTALL}") from None
        try:
            self._fast = Fast.from_file(str(path))
        except Exception as error:  # the package raises nothing more particular
            raise CheckpointError(f"{path}: expected a tokenizer, found what cannot be read as one ({error})") from None

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, with those that the tokenizer puts around every text."""
        return self._fast.encode(text).ids

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without the special ones."""
        return self._fast.decode(list(tokens), skip_special_tokens=True)

    def encode_chat(self, text: str) -> list[int]:
        """The tokens of a conversation that begins with this message, up to where the answer begins.

        Raises CheckpointError for a folder without a chat template, and for a template that cannot be rendered;
        NoTokenizerError without the package jinja2.
        """
        return self._fast.encode(self._render_chat(text), add_special_tokens=False).ids

    def _render_chat(self, text: str) -> str:
        try:
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError:
            raise NoTokenizerError(f"chat templates need the package jinja2: {INSTALL}") from None
        where, template, special = self._chat_template()
        # The settings and functions that templates are written for, as transformers has them.
        jinja = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        jinja.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        jinja.globals["raise_exception"] = _refuse
        jinja.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        try:
            return jinja.from_string(template).render(
                messages=[{"role": "user", "content": text}], add_generation_prompt=True, **special
            )
        except Exception as error:  # whatever a template does wrong
            raise CheckpointError(f"{where}: the chat template cannot be rendered: {error}") from None

    def _chat_template(self) -> tuple[Path, str, dict[str, str]]:
        """The file that has the template, the template, and the special tokens that it may name."""
        path = self.folder / "tokenizer_config.json"
        config = read_json(path) if path.is_file() else {}
        names = ("bos_token", "eos_token", "unk_token", "pad_token")
        special = {name: _content(config[name]) for name in names if config.get(name)}
        beside = self.folder / "chat_template.jinja"
        if beside.is_file():
            return beside, beside.read_text(encoding="utf-8"), special
        template = config.get("chat_template")
        if isinstance(template, list):  # several, by name
            template = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}.get("default")
        if not isinstance(template, str):
            raise CheckpointError(f"{path}: expected a chat_template, found none: leave --chat away")
        return path, template, special


def _content(token: Any) -> str:
    """A special token's text: itself, or the content of an object that describes it."""
    return str(token.get("content", "")) if isinstance(token, dict) else str(token)


def _refuse(message: str) -> None:
    raise ValueError(message)


class Detokenizer:
    """The text of a growing row of tokens, piece by piece, each of whole characters.

    decode  gives the text of a row of tokens. Several tokens may make up one character, and a token's text may
            depend on those before it: new text is what the row has with the new token and lacks without it
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt: Sequence[int] = ()):
        self.decode = decode
        self.tokens = list(prompt)
        self.shown = len(self.tokens)  # tokens whose text was given out, or belongs to the prompt
        # Only tokens from `first` on are decoded each time: those of the last piece, and what came after it. `first`
        # must not split a character, as the prompt's end may: `whole` is the last place known to split none.
        self.first = 0
        self.whole = 0 if self.decode(self.tokens).endswith(UNKNOWN) else self.shown

    def add(self, token: int) -> str:
        """The text that a token completes; "" where a character is still incomplete."""
        self.tokens.append(token)
        text = self._new_text()
        if not text or text.endswith(UNKNOWN):
            return ""
        self.first, self.whole, self.shown = self.whole, len(self.tokens), len(self.tokens)
        return text

    def end(self) -> str:
        """What is left when no token follows: whole characters, not those that stay incomplete."""
        return self._new_text().rstrip(UNKNOWN)

    def _new_text(self) -> str:
        before = self.decode(self.tokens[self.first : self.shown]).rstrip(UNKNOWN)
        return self.decode(self.tokens[self.first :])[len(before) :]


class StopStrings:
    """Text up to the stop string that is complete first; text that may begin one is held until that is decided.

    Raises ValueError for an empty string.
    """

    def __init__(self, strings: Sequence[str]):
        if not all(strings):
            raise ValueError('a stop string must not be empty, got ""')
        self.strings = strings
        self.met: str | None = None
        self._held = ""

    def add(self, text: str) -> str:
        """The part of the held text and this text that can be given out; "" once a string was met."""
        if self.met is not None:
            return ""
        text = self._held + text
        found = [(text.find(s) + len(s), text.find(s), s) for s in self.strings if s in text]
        if found:
            _, start, self.met = min(found)
            self._held = ""
            return text[:start]
        keep = max((n for s in self.strings for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def end(self) -> str:
        """What was held, when no text follows."""
        held, self._held = self._held, ""
        return held
