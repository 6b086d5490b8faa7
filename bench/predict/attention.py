"""What decode_attention should take on a GPU that is not here, from bytes and from counted instructions. Predicted.

time = start + the longest of memory, issue and latency + combination of the splits

memory   keys and values that are seen, at the bandwidth of a copy
issue    instructions of the loop over tiles of 16 keys, on the busiest multiprocessor
latency  a warp waits twice a tile, for keys and for values, on the busiest multiprocessor
start    the launch, then positions, then queries
"""

from __future__ import annotations

from dataclasses import dataclass

from cutpq.array import ceil_div
from cutpq.kernels.compile import compile_kernel
from cutpq.model.decode_attention import config_for
from predict.gemm import Machine
from predict.machine_code import attention_tile

REGISTERS, WARPS_OF_SM = 65536, 64  # what a multiprocessor has


@dataclass(frozen=True)
class Shape:
    """One decode step of a layer: `keys` seen by each of `batch` sequences, in a cache of `length`; float16."""

    batch: int
    kv_heads: int
    rep: int
    head_dim: int
    keys: int
    length: int

    @property
    def read_bytes(self) -> int:
        """Keys and values that are seen."""
        return self.batch * self.kv_heads * self.keys * self.head_dim * 2 * 2


@dataclass(frozen=True)
class Prediction:
    """Times in us; `work` by what it needs, each as if nothing else took time."""

    time_us: float
    work: dict[str, float]
    fixed_us: float

    @property
    def bound(self) -> str:
        """What takes most of the time."""
        parts = self.work | {"start and end": self.fixed_us}
        return max(parts, key=lambda part: parts[part])


def predict(shape: Shape, machine: Machine) -> Prediction:
    """The time of one launch."""
    config = config_for("float16", shape.head_dim, shape.rep)
    heads = ceil_div(shape.rep, config.HEADS)
    pairs = shape.batch * shape.kv_heads * heads
    split_keys = config.split_keys(pairs, shape.length, machine.device)
    splits = ceil_div(shape.keys, split_keys)
    cubin = compile_kernel("decode_attention", config, machine.arch)
    resident = min(
        REGISTERS // (config.THREADS * ceil_div(cubin.resources.registers, 8) * 8),
        machine.device.smem_limit // (config.smem_bytes + 1024),
    )
    warps = config.THREADS // 32
    tiles_of_warp = ceil_div(min(split_keys, shape.keys), 16 * warps)
    most = ceil_div(pairs * splits, machine.device.sms)  # blocks of the busiest multiprocessor
    filled = min(machine.issue_fraction, machine.warp_fraction * min(most, resident) * warps / 4)
    instructions = attention_tile(config, machine.arch).instructions
    work = {
        "memory": shape.read_bytes / machine.copy_gb_s / 1e3,
        "issue slots": most * warps * tiles_of_warp * instructions / (4 * machine.clock_ghz * 1e3 * filled),
        "latency": ceil_div(most, resident) * tiles_of_warp * 2 * machine.latency_us,
    }
    fixed = machine.launch_us + 3 * machine.latency_us
    if splits > 1:  # parts and the counter to L2; the last block reads largest, then parts, some at a time
        at_a_time = 64 // config.HEADS  # PARTS_AT_A_TIME of tile/attention_parts.cuh
        fixed += (4 + ceil_div(splits, at_a_time)) * machine.latency_us / 2
    return Prediction(fixed + max(work.values()), work, fixed)
