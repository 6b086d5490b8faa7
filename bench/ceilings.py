"""What nothing on this GPU can beat: a copy's bandwidth, the launch of an empty kernel, cuBLAS's peak, the L2's size.

python bench/ceilings.py [--smoke]        needs a GPU and CuPy
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from harness.gpu_clock import NoGpu, ceilings, gpu_module
from harness.report import header

from cutpq.ranks.alone import SelfCommunicator


def main(argv: Sequence[str] | None = None) -> int:
    """Print the ceilings; 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does everything work?")
    args = parser.parse_args(argv)
    try:
        xp = gpu_module()
    except NoGpu as error:
        print(f"ceilings.py: {error}", file=sys.stderr)
        return 2
    found = ceilings(xp, args.smoke)
    print("\n".join(header(SelfCommunicator("ceilings", xp, xp.cuda.runtime.getDevice()))))
    print(f"copy_gb_s {found.copy_gb_s:.0f}\nlaunch_us {found.launch_us:.2f}")
    print(f"library_tflops {found.library_tflops:.0f}\nl2_bytes {found.l2_bytes}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
