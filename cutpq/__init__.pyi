from .checkpoint.errors import CheckpointError, CheckpointWarning
from .checkpoint.folder import Checkpoint, open_checkpoint
from .checkpoint.mlp_names import MlpModules, mlp_modules, mlps
from .codecs.codec import Codec, codec
from .layers.linear import ColumnParallelLinear, RowParallelLinear
from .layers.mlp import Mlp
from .layers.plan import LayerPlan, plan
from .model.cache import Cache
from .model.generate import Step, generate
from .model.sampler import Sampler
from .model.transformer import Transformer, load_model
from .ops.dequant import dequantize
from .ops.gemm import matmul
from .quantization.job import QuantizationError
from .quantization.quantize import quantize
from .quantization.solver import quantize_weight
from .ranks.all_reduce import all_reduce, all_reduce_rmsnorm
from .ranks.communicator import Communicator
from .ranks.init import init
from .ranks.threads import run_threads
from .weights.permutation import invert, permute_columns, sort_groups
from .weights.schemes import SCHEMES
from .weights.shard import even_bounds, group_bounds, shard_columns, shard_rows
from .weights.weight import PlainWeight, QuantWeight

__version__: str

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
    "QuantizationError",
    "RowParallelLinear",
    "Sampler",
    "Step",
    "Transformer",
    "all_reduce",
    "all_reduce_rmsnorm",
    "codec",
    "dequantize",
    "even_bounds",
    "generate",
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
    "quantize",
    "quantize_weight",
    "run_threads",
    "shard_columns",
    "shard_rows",
    "sort_groups",
]
