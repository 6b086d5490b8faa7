"""cutpq: tensor-parallel inference with act-order weights, in CuPy and raw CUDA.

    import cutpq as cq

    comm = cq.init()
    ckpt = cq.open_checkpoint("path/to/hf-folder")
    mlp = cq.Mlp.from_checkpoint(ckpt, layer=0, comm=comm, scheme="tp-aware")
    y = mlp(x)                      # the same array on every rank, bit for bit

NumPy arrays in, NumPy arrays out; CuPy in, CuPy out. Importing this needs neither CuPy nor MPI.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# The public names of each module, which is imported when one of them is first asked for: eight ranks that multiply
# need not read the quantizer eight times. For type checkers __init__.pyi says the same.
_NAMES = {
    "checkpoint.errors": "CheckpointError CheckpointWarning",
    "checkpoint.folder": "Checkpoint open_checkpoint",
    "checkpoint.mlp_names": "MlpModules mlp_modules mlps",
    "codecs.codec": "Codec codec",
    "layers.linear": "ColumnParallelLinear RowParallelLinear",
    "layers.mlp": "Mlp",
    "layers.plan": "LayerPlan plan",
    "model.cache": "Cache",
    "model.generate": "Step generate",
    "model.sampler": "Sampler",
    "model.transformer": "Transformer load_model",
    "ops.dequant": "dequantize",
    "ops.gemm": "matmul",
    "quantization.job": "QuantizationError",
    "quantization.quantize": "quantize",
    "quantization.solver": "quantize_weight",
    "ranks.all_reduce": "all_reduce all_reduce_rmsnorm",
    "ranks.communicator": "Communicator",
    "ranks.init": "init",
    "ranks.threads": "run_threads",
    "weights.permutation": "invert permute_columns sort_groups",
    "weights.schemes": "SCHEMES",
    "weights.shard": "even_bounds group_bounds shard_columns shard_rows",
    "weights.weight": "PlainWeight QuantWeight",
}
_MODULE = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = sorted(_MODULE)


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f".{_MODULE[name]}", __name__), name)
    return found


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
