"""How long a rank waits for the others, and the error that names those that did not come."""

from __future__ import annotations

import os
import time
from functools import cache

# Eight ranks on two cores, all_reduce of 256 numbers: with 1 us a rank computes a quarter longer, most of it for looks
# in vain, and the call takes a sixth longer; from 200 us on a rank comes late.
PAUSE_S = 5e-5


class RanksDisagreeError(RuntimeError):
    """The ranks do not make the same sequence of collective calls, or one of them is gone."""


def patience_s() -> float:
    """How long a rank waits for another in one collective: CUTPQ_TIMEOUT in seconds, 60 unless set.

    Raises ValueError for a CUTPQ_TIMEOUT that is no number, or not between 0 and 4000.
    """
    text = os.environ.get("CUTPQ_TIMEOUT") or "60"
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 4e3:
        raise ValueError(f"CUTPQ_TIMEOUT={text!r} is no number of seconds between 0 and 4000")
    return seconds


@cache
def _is_crowded() -> bool:
    return os.environ.get("MPIR_CVAR_ENABLE_HEAVY_YIELD") == "1"  # MPICH too reads it when it starts


class Patience:
    """The time that a rank still waits for others; each look at it gives the core to another rank.

    Where ranks outnumber cores (discovery.py tells MPICH so, too) a look sleeps for PAUSE_S: with sched_yield alone
    the same collectives took twice as long.
    """

    def __init__(self) -> None:
        self.end = time.monotonic() + patience_s()
        self.crowded = _is_crowded()

    def is_over(self) -> bool:
        """Let others run for a moment; True once CUTPQ_TIMEOUT has passed since this object was made."""
        if self.crowded:
            time.sleep(PAUSE_S)
        else:
            os.sched_yield()
        return time.monotonic() > self.end
