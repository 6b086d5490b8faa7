"""What an installed cutpq must be able to do; run by the Python of the environment it was installed into.

python installed.py CHECKPOINT Y.npy        prints where cutpq was found, writes a product, compiles a kernel
"""

import sys

import numpy as np

import cutpq as cq
from cutpq.kernels.compile import compile_kernel
from cutpq.shipped import shipped


def main() -> None:
    """Read a weight, multiply by it, compile one kernel: all with what a wheel requires, and NVRTC."""
    ckpt, out = sys.argv[1:]
    w = cq.open_checkpoint(ckpt).weight("model.layers.0.mlp.down_proj")
    x = np.random.default_rng(0).standard_normal((5, w.K)).astype(np.float16)
    np.savez(out, x=x, y=cq.matmul(x, w))
    name, config = next(pair for pair in shipped(90) if pair[0] == "dequant")
    print(cq.__file__, compile_kernel(name, config, "sm_90a").path, sep="\n")


if __name__ == "__main__":
    main()
