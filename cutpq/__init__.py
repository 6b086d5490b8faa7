"""cutpq: tensor-parallel inference with act-order weights, in CuPy and raw CUDA.

    import cutpq as cq

    comm = cq.init()
    ckpt = cq.open_checkpoint("path/to/hf-folder")
    mlp = cq.Mlp.from_checkpoint(ckpt, layer=0, comm=comm, scheme="tp-aware")
    y = mlp(x)                      # the same array on every rank, bit for bit

NumPy arrays in, NumPy arrays out; CuPy in, CuPy out. Importing this needs neither CuPy nor MPI.
"""

from .all_reduce import all_reduce
from .architectures import MlpModules, mlp_modules, mlps
from .cache import Cache
from .checkpoint import Checkpoint, open_checkpoint
from .codec import Codec, codec
from .comm import Communicator, init, run_threads
from .dequant import dequantize
from .gemm import matmul
from .linear import ColumnParallelLinear, RowParallelLinear
from .mlp import Mlp
from .plan import LayerPlan, plan
from .reorder import invert, permute_columns, sort_groups
from .shard import SCHEMES, even_bounds, group_bounds, shard_columns, shard_rows
from .tensors import CheckpointError, CheckpointWarning
from .transformer import Transformer, load_model
from .weight import PlainWeight, QuantWeight

__version__ = "0.1.0"

__all__ = [
    "SCHEMES",
    "Cache",
    "Checkpoint",
    "CheckpointError",
    "CheckpointWarning",
    "Codec",
    "ColumnParallelLinear",
    "Communicator",
    "LayerPlan",
    "Mlp",
    "MlpModules",
    "PlainWeight",
    "QuantWeight",
    "RowParallelLinear",
    "Transformer",
    "all_reduce",
    "codec",
    "dequantize",
    "even_bounds",
    "group_bounds",
    "init",
    "invert",
    "load_model",
    "matmul",
    "mlp_modules",
    "mlps",
    "open_checkpoint",
    "permute_columns",
    "plan",
    "run_threads",
    "shard_columns",
    "shard_rows",
    "sort_groups",
]
