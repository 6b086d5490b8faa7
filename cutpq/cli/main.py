"""cutpq inspect | plan | convert | quantize | generate: what a checkpoint holds, what to do with it, and doing it."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence

from ..checkpoint.errors import CheckpointError, CheckpointWarning
from ..convert.reader import ConversionError
from ..quantization.job import QuantizationError
from . import convert, generate, inspect, plan, quantize

_EXAMPLES = """examples:
  cutpq inspect Llama-2-70B-GPTQ                        what the files hold, against what the config claims
  cutpq inspect Llama-2-70B-GPTQ --json | jq '.modules[].order'
  cutpq plan Llama-2-70B-GPTQ --tp 8 --link h100-nvlink
  cutpq convert Llama-2-70B-GPTQ Llama-2-70B-sorted     no act-order in any down_proj, for any engine and any TP
  mpirun -n 8 cutpq generate Llama-2-70B-GPTQ --prompt "The reason is"
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; its exit status: 0, 1 for an error, 2 for wrong usage, 130 for Ctrl-C."""
    args = _parser().parse_args(argv)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", CheckpointWarning)
            status = args.run(args)
        for message in dict.fromkeys(str(w.message) for w in caught):
            print(f"note: {message}", file=sys.stderr)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe, such as head, closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (CheckpointError, ConversionError, QuantizationError) as e:
        return _fail(str(e))
    except OSError as e:
        path = e.filename2 or e.filename  # filename2 is the file that a copy wrote
        return _fail(f"{path}: {e.strerror}" if path else str(e))
    except KeyboardInterrupt:
        print("cutpq: interrupted", file=sys.stderr)
        return 130
    return status or 0


def _fail(message: str) -> int:
    print(f"cutpq: error: {message}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cutpq", description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="inspect | plan | convert | quantize | generate")
    for module in (inspect, plan, convert, quantize, generate):
        module.add_parser(commands)
    return parser
