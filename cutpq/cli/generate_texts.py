"""The prompts of `cutpq generate` as tokens, and their texts as they are made and printed; rank 0 has them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from ..model.generate import Step
from ..model.text import Detokenizer, NoTokenizerError, StopStrings, Tokenizer
from .generate_figures import in_words


class Texts:
    """The prompts as tokens, and what becomes of each.

    Raises ValueError for prompts that are missing, empty or unreadable; what Tokenizer raises.
    """

    def __init__(self, args: argparse.Namespace, out: TextIO):
        self.args, self.out = args, out
        given = [*args.prompt, *map(_read, args.prompt_file)]
        if not given:
            raise ValueError('there is no prompt: pass --prompt "..." or --prompt-file FILE')
        self.tokenizer = _tokenizer(args)
        self.prompts = [self._tokens(text, i) for i, text in enumerate(given, 1)]
        self.texts = [
            Text(text, prompt, self.tokenizer, args.stop) for text, prompt in zip(given, self.prompts, strict=True)
        ]
        self.shown = 0  # texts appear one after the other: that of the first prompt as it is made

    def _tokens(self, text: str, number: int) -> list[int]:
        if not text.strip():
            raise ValueError(f"prompt {number} is empty: give it a word to continue")
        if self.tokenizer:
            tokens = self.tokenizer.encode_chat(text) if self.args.chat else self.tokenizer.encode(text)
            if not tokens:
                raise ValueError(f"prompt {number}, {text!r}, has no token that the tokenizer knows")
            return tokens
        words = text.replace(",", " ").split()
        if not all(word.isdecimal() for word in words):
            raise ValueError(f'prompt {number} must be token ids, such as "0 17 5", got {text[:60]!r}')
        return [int(word) for word in words]

    def add(self, step: Step, interrupted: bool) -> dict[int, str]:
        """Take a step's tokens in; which texts end with it for a stop string or Ctrl-C."""
        for sequence, token in step.tokens.items():
            self.texts[sequence].add(token, is_end=step.finished.get(sequence) == "eos")
        if interrupted:
            return dict.fromkeys(step.tokens.keys() - step.finished.keys(), "interrupted")
        return {sequence: "stop" for sequence in step.tokens if self.texts[sequence].stop.met is not None}

    def show(self, step: Step) -> None:
        """Print what can be printed after a step."""
        for sequence, reason in step.finished.items():
            self.texts[sequence].finish(reason)
        if self.args.json:
            return
        while self.shown < len(self.texts):
            text = self.texts[self.shown]
            if len(self.texts) > 1 and not text.headed:
                print(f"# prompt {self.shown + 1}: {_shortened(text.given)}", file=self.out)
                text.headed = True
            print(text.take(), end="", flush=True, file=self.out)
            if not text.finished:
                return
            print(file=self.out)
            self.shown += 1

    def close(self, figures: dict[str, Any]) -> None:
        """Print what stands at the end: the figures, and what a reader may wonder about."""
        if self.args.json:
            told = {"sequences": [text.as_json() for text in self.texts], "figures": figures}
            print(json.dumps(told, indent=2), file=self.out)
        for number, text in enumerate(self.texts, 1):
            if self.args.stop and text.finished != "stop":
                print(f"note: prompt {number} met no stop string: it ended by {text.finished}", file=sys.stderr)
        print(in_words(figures), file=sys.stderr)


class Text:
    """What becomes of one prompt."""

    def __init__(self, given: str, prompt: list[int], tokenizer: Tokenizer | None, stop: Sequence[str]):
        self.given, self.prompt = given, prompt
        self.tokens: list[int] = []
        self.pieces = Detokenizer(tokenizer.decode, prompt) if tokenizer else None
        self.stop = StopStrings(stop)
        self.text, self.taken = "", 0
        self.finished = ""
        self.headed = False

    def add(self, token: int, is_end: bool) -> None:
        self.tokens.append(token)
        if self.pieces is None:
            self.text += f"{token} "
        elif not is_end:
            self.text += self.stop.add(self.pieces.add(token))

    def finish(self, reason: str) -> None:
        self.finished = reason
        if self.pieces:
            self.text += self.stop.add(self.pieces.end()) + self.stop.end()

    def take(self) -> str:
        """What has come since this was asked last."""
        new, self.taken = self.text[self.taken :], len(self.text)
        return new

    def as_json(self) -> dict[str, Any]:
        text = self.text if self.pieces else None
        return {
            "prompt": self.given, "prompt_tokens": self.prompt, "tokens": self.tokens, "text": text,
            "finished": self.finished,
        }  # fmt: skip


def _read(path: str) -> str:
    try:
        raw = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        return raw.decode("utf-8").rstrip("\n")
    except OSError as error:
        raise ValueError(f"--prompt-file {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompt-file {path}: not UTF-8 text, at byte {error.start}") from None


def _tokenizer(args: argparse.Namespace) -> Tokenizer | None:
    """The folder's; None, and a line that says why, where there is none and none is needed."""
    try:
        return Tokenizer(args.dir)
    except NoTokenizerError as why:
        if args.chat or args.stop:
            raise ValueError(f"{'--chat' if args.chat else '--stop'} needs a tokenizer: {why}") from None
        print(f"note: {why}; prompts and output are token ids", file=sys.stderr)
        return None


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:57]}..."
