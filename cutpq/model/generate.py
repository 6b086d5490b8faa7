"""New tokens, one of each sequence at a time, until every sequence has ended.

    for step in cq.generate(model, [[0, 17, 5], [0, 4]], max_tokens=32, sampler=cq.Sampler(temperature=0.8)):
        print(step.tokens)                        # {0: 84, 1: 301}: of each prompt that still runs

Rank 0 draws, and every rank is told: one machine's exp() may differ from another's in its last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .cache import token_row
from .sampler import Sampler
from .transformer import Transformer

GREEDY = Sampler(temperature=0)


@dataclass(frozen=True)
class Step:
    """One new token of every sequence that was running; sequences are numbered as their prompts were passed.

    tokens    {sequence: token}
    finished  {sequence: reason} of those that end with this token: "eos", "length" (max_tokens are made), "positions"
              (the model has no more), or what `ends` said
    """

    tokens: dict[int, int]
    finished: dict[int, str] = field(default_factory=dict)


# Called on rank 0 with a step before others see it: which more sequences end with it, each with the reason.
Ends = Callable[[Step], dict[int, str]]


class PromptError(ValueError):
    """A prompt that cannot be continued: `index` says which, from 0 on, and `what` is wrong with it."""

    def __init__(self, index: int, what: str):
        self.index, self.what = index, what
        super().__init__(f"tokens[{index}] {what}")


def generate(
    model: Transformer,
    tokens: Sequence[Any],
    *,
    max_tokens: int,
    sampler: Sampler = GREEDY,
    eos: Sequence[int] | None = None,
    ends: Ends | None = None,
) -> Iterator[Step]:
    """Steps, the same on every rank; to be called, and gone through, on every rank alike.

    tokens      a row of token ids for each prompt, of any lengths; they run as one batch, which a sequence leaves
                when it ends
    max_tokens  most new tokens of a sequence
    sampler     how they are drawn; the likeliest unless it is given
    eos         tokens that end a sequence; unless given, those that the checkpoint names
    ends        may end sequences for reasons of its own, see Ends; called on rank 0 only

    Raises, on every rank and before anything is computed, PromptError for a prompt that leaves no position for a new
    token and for a token out of range; ValueError for no prompt, an empty one, and max_tokens below 1.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, got {max_tokens}")
    if not len(tokens):
        raise ValueError("expected at least one prompt, got none")
    prompts = [_checked(row, i, model) for i, row in enumerate(tokens)]
    return _steps(model, prompts, max_tokens, sampler, set(model.eos if eos is None else eos), ends)


def _checked(row: Any, i: int, model: Transformer) -> list[int]:
    prompt = token_row(row, i)
    vocabulary, positions = model.decoder.vocabulary, model.decoder.max_positions
    wrong = prompt[(prompt < 0) | (prompt >= vocabulary)]
    if len(wrong):
        raise PromptError(i, f"has token {wrong[0]}: the model's tokens are 0 .. {vocabulary - 1}")
    if len(prompt) >= positions:
        what = f"has {len(prompt)} tokens, but the model has {positions} positions, one of them for a new token"
        raise PromptError(i, what)
    return prompt.tolist()


def _steps(
    model: Transformer, prompts: list[list[int]], max_tokens: int, sampler: Sampler, eos: set[int], ends: Ends | None
) -> Iterator[Step]:
    positions = model.decoder.max_positions
    longest = max(map(len, prompts))
    cache = model.new_cache(len(prompts), min(longest + max_tokens, positions))
    texts = [list(prompt) for prompt in prompts]
    rows = list(range(len(prompts)))  # the sequence in each row of the cache
    logits = model(prompts, cache, last_only=True)
    for number in range(max_tokens):
        step = None
        if model.comm.rank == 0:
            drawn = sampler(logits, [texts[s] for s in rows], rows, number)
            step = Step(dict(zip(rows, drawn.tolist(), strict=True)))
            for sequence, token in step.tokens.items():
                texts[sequence].append(token)
                if token in eos:
                    step.finished[sequence] = "eos"
                elif number + 1 == max_tokens:
                    step.finished[sequence] = "length"
                elif len(texts[sequence]) == positions:
                    step.finished[sequence] = "positions"
            if ends:
                step.finished.update(ends(step))
        step = model.comm.bcast(step)
        yield step
        for row in range(len(rows) - 1, -1, -1):
            if rows[row] in step.finished:
                cache.remove(row)
                rows[row] = rows[-1]
                rows.pop()
        if not rows:
            return
        logits = model.decode([step.tokens[s] for s in rows], cache)
