"""What `cutpq generate` measures: time, tokens and sent bytes of each phase, as a line and as a table."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Any

from ..array import to_numpy
from ..ranks.communicator import Communicator


class Clock:
    """Time, tokens and sent bytes of each phase: load, prefill (to the first tokens), decode, text."""

    def __init__(self, comm: Communicator):
        self.comm = comm
        self.phases: dict[str, Phase] = {}
        self.last, self.sent = time.perf_counter(), comm.sent_bytes

    def phase(self, name: str, tokens: int) -> None:
        """What was done since the last call was this phase, and made so many tokens."""
        now, sent = time.perf_counter(), self.comm.sent_bytes
        phase = self.phases.setdefault(name, Phase())
        phase.calls += 1
        phase.tokens += tokens
        phase.seconds += now - self.last
        phase.sent += sent - self.sent
        self.last, self.sent = now, sent

    def figures(self, prompt_tokens: int) -> dict[str, Any]:
        """What one line tells; the same on every rank but for the times, which are rank 0's. Collective."""
        prefill, decode = self.phases["prefill"], self.phases.get("decode", Phase())
        mine = self.comm.xp.asarray([[phase.sent for phase in self.phases.values()]])
        self.sent_by_rank = to_numpy(self.comm.all_gather(mine)).reshape(self.comm.size, -1)
        return {
            "ranks": self.comm.size,
            "prompt_tokens": prompt_tokens,
            "new_tokens": prefill.tokens + decode.tokens,
            "first_token_ms": prefill.seconds * 1e3,
            "tokens_per_s": decode.tokens / decode.seconds if decode.tokens else None,
            "sent_bytes": self.sent_by_rank.sum(axis=1).tolist(),
        }

    def print_phases(self) -> None:
        """A table on stderr."""
        print("# phase   calls  tokens    time_ms  tokens/s  sent_bytes (most of any rank)", file=sys.stderr)
        for (name, phase), sent in zip(self.phases.items(), self.sent_by_rank.max(axis=0), strict=True):
            speed = f"{phase.tokens / phase.seconds:.1f}" if phase.tokens else "-"
            row = f"  {name:<7}{phase.calls:6}{phase.tokens:8}{phase.seconds * 1e3:11.1f}{speed:>10}{sent:12}"
            print(row, file=sys.stderr)


@dataclass
class Phase:
    """Sums over the calls of a phase."""

    calls: int = 0
    tokens: int = 0
    seconds: float = 0.0
    sent: int = 0


def in_words(figures: dict[str, Any]) -> str:
    sent, speed = figures["sent_bytes"], figures["tokens_per_s"]
    spread = f"{min(sent)} to {max(sent)}" if min(sent) < max(sent) else f"{sent[0]}"
    return (
        f"# {figures['prompt_tokens']} prompt tokens, {figures['new_tokens']} new tokens, first after "
        f"{figures['first_token_ms']:.1f} ms, then {'-' if speed is None else format(speed, '.1f')} tokens/s; "
        f"{spread} bytes sent by each of {figures['ranks']} rank{'s' * (figures['ranks'] > 1)}"
    )
