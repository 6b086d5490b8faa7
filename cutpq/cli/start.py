"""The ranks of a command, or one message that says why there are none."""

from __future__ import annotations

import sys

from ..ranks.communicator import Communicator
from ..ranks.discovery import StartError
from ..ranks.init import init


def start() -> Communicator:
    """All ranks that were started together. Ends the process with status 1 where they cannot work together."""
    try:
        return init()
    except (StartError, ValueError) as error:  # raised on all ranks, none of which could tell the others
        sys.exit(f"cutpq: error: {error}")
