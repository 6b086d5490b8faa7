"""Every kernel with the configurations that stand for all: what tests compile and bench/kernels.py lists."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .array import bfloat16
from .codecs.config import encode_config, sum_config, sum_encode_config, wire_config
from .codecs.formats import ELEMENTS, SCALES
from .kernels.config import BFLOAT16, FLOAT16, FLOAT32, Config, Device
from .model.attention import RotateConfig, softmax_config
from .model.decode_attention import config_for
from .ops.activation import ActivationConfig, activation_code
from .ops.dequant import DequantConfig
from .ops.gather import GatherConfig, RmsnormConfig
from .ops.gemm_config import GemmProblem, candidates, select_gemm, with_stages
from .ops.prefetch import prefetch_config
from .ops.residual_norm import ResidualNormConfig
from .quantization.round_rows import RoundRowsConfig
from .ranks.slab import peer_config

# Codecs that stand for all in the compile test: every width of an element and every format of a scale.
_SHIPPED_CODECS = (
    ("e2m1", 32, "e8m0", "floor"), ("e2m1", 16, "e4m3", "even"), ("e2m0", 8, "e4m0", "even"),
    ("e2m2", 128, "e5m0", "rceil"), ("e3m2", 32, "e8m0", "floor"), ("e4m3", 64, "float16", "rceil"),
    ("int7", 32, "e8m0", "floor"), ("int2", 8, "e8m0", "floor"),
)  # fmt: skip


# Features of a head in the models that there are.
HEAD_DIMS = (64, 80, 96, 128, 256)


def _shipped_wires() -> list[tuple[str, Config]]:
    codecs = [(ELEMENTS[element], block, SCALES[scale], rule) for element, block, scale, rule in _SHIPPED_CODECS]
    mxfp4, dtypes = codecs[0], (FLOAT16, BFLOAT16, FLOAT32)
    made: list[tuple[str, Config]] = [("encode", encode_config(*mxfp4, dtype)) for dtype in dtypes[1:]]
    made += [("encode", encode_config(*codec, FLOAT16)) for codec in codecs]
    made += [("decode_sum", sum_config(*mxfp4, dtype, ranks)) for dtype in dtypes for ranks in (1, 8)]
    made += [("decode_sum", sum_config(*codec, FLOAT16, 4)) for codec in codecs]
    made += [("decode_sum_encode", sum_encode_config(*codec, 8)) for codec in codecs[:4]]
    for kernel, steps in ("all_reduce_oneshot", range(3)), ("all_reduce_twoshot", range(4)):
        made += [(kernel, peer_config(mxfp4, FLOAT16, 8, step)) for step in steps]
        made += [(kernel, peer_config(mxfp4, BFLOAT16, 8))]
        made += [(kernel, peer_config(None, dtype, 4)) for dtype in dtypes]
    norms = [(dtype, ranks) for dtype in dtypes[:2] for ranks in (1, 8)]
    return made + [("decode_sum_rmsnorm", wire_config(*mxfp4, dtype, ranks)) for dtype, ranks in norms]


def shipped(arch: int) -> list[tuple[str, Config]]:
    """Every kernel with the configurations that the choices above make for a device: what tests compile.

    Of gemm_w4a16 every shape of block for groups of 128, one shape for other groups; of 8-bit codes those that take
    most registers and those of few tokens. Group sizes and zero points that other weights have are compiled when they
    are met.
    """
    dtypes = (FLOAT16, BFLOAT16)
    groups = [("uniform", size) for size in (0, 32, 128)] + [("ascending", 0), ("scattered", 0)]
    problems = [
        GemmProblem(M, 4096, 4096, dtype, scale_lookup, size, zero)
        for M in (8, 16, 32, 64)
        for dtype in dtypes
        for scale_lookup, size in groups
        for zero in (8, None)
    ]
    activated = [
        GemmProblem(M, 4096, 4096, FLOAT16, "uniform", 128, 8, activation, gated)
        for M in (8, 16, 32, 64)
        for activation, gated in (("silu", True), ("gelu_tanh", False))
    ]
    octets = [
        GemmProblem(M, 4096, 4096, dtype, scale_lookup, size, zero, bits=8)
        for M in (16, 64)
        for dtype in dtypes
        for scale_lookup, size, zero in (("uniform", 128, 128), ("uniform", 128, None), ("scattered", 0, None))
    ]
    few = GemmProblem(8, 4096, 4096, FLOAT16, "uniform", 128, 128, bits=8)
    device = Device(arch, 108)
    chosen = [select_gemm(problem, device)[0] for problem in (*problems, *activated, *octets)]
    of_all = [few, *(p for p in problems if p.group_size == 128)]
    shapes = [with_stages(c, device) for p in of_all for tier in candidates(p) for c in tier]
    chosen += [replace(config, PDL=True) for config in chosen[:: len(groups)]] if arch >= 90 else []
    gemm = dict.fromkeys(chosen + [config for config in shapes if not config.objections(device)])  # each once
    dequant = [
        ("dequant", DequantConfig(bits, dtype, lookup))
        for bits in (4, 8)
        for dtype in dtypes
        for lookup in (False, True)
    ]
    norms: list[tuple[str, Config]] = [("rmsnorm_gather", RmsnormConfig(dtype)) for dtype in dtypes]
    norms += [("residual_norm", ResidualNormConfig(dtype, center)) for dtype in dtypes for center in (False, True)]
    activations = [
        ("activation", ActivationConfig(dtype, activation_code(kind), gated))
        for dtype in dtypes
        for kind, gated in (("silu", True), ("gelu", False), ("gelu_tanh", False))
    ]
    attention: list[tuple[str, Config]] = [("rotate_qkv", RotateConfig(dtype)) for dtype in dtypes]
    attention += [("decode_attention", config_for(np.float16, D, rep)) for D in HEAD_DIMS for rep in (8, 16)]
    attention += [("decode_attention", config_for(bfloat16, 128, 8))]
    attention += [("softmax", softmax_config(columns, dtype)) for columns in (64, 4096, 32768) for dtype in dtypes]
    others = [
        ("gather_columns", GatherConfig()),
        ("prefetch_l2", prefetch_config(arch)),
        ("round_rows", RoundRowsConfig()),
        *norms,
        *activations,
        *(("gemm_w4a16", config) for config in gemm),
    ]
    return [*dequant, *others, *attention, *_shipped_wires()]
