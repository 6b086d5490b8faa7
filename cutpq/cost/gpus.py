"""What products and permutations cost on a GPU, in pure functions.

A product takes the longer of its memory traffic and its arithmetic, plus one kernel launch. Peaks are those of
NVIDIA's data sheets (dense fp16, no sparsity), of which a stated fraction is taken for achievable.

Times are in us, bytes in bytes, 1 GB/s = 10^9 B/s.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..array import ceil_div
from ..weights.pack import packed_bits

ACTIVATION_BYTES = 2
SCALE_BYTES = 2
INDEX_BYTES = 4


@dataclass(frozen=True)
class Gpu:
    """A GPU by its data sheet, and what part of it a good kernel gets.

    memory_gb_s, fp16_tflops  published peaks, arithmetic dense
    memory_fraction   0.85: what weight-only kernels of several authors reached on H100 and H200 (84 and 85 %, from
                      the differences between 8- and 4-bit times of one shape)
    compute_fraction  0.6: mma.sync kernels end at 62 to 75 % of Hopper's peak and at 45 % of an A100's
    cache_ratio       L2 over memory bandwidth: A100, 5120 B per clock at 1.41 GHz against 2039 GB/s; for want of
                      other published figures the same on all
    launch_us         from one kernel's end to the next one's start, in a stream without graph capture
    """

    name: str
    memory_gb_s: float
    fp16_tflops: float
    memory_fraction: float = 0.85
    compute_fraction: float = 0.6
    cache_ratio: float = 3.5
    launch_us: float = 3.0

    def read_us(self, nbytes: float) -> float:
        """Time to stream that many bytes between memory and the multiprocessors."""
        return nbytes / (self.memory_gb_s * self.memory_fraction * 1e3)


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100", 2039.0, 312.0),  # A100 80GB SXM
        Gpu("h100", 3350.0, 989.0),  # H100 SXM
        Gpu("h200", 4800.0, 989.0),  # H200 SXM
        Gpu("l4", 300.0, 121.0),
    )
}


@dataclass(frozen=True)
class WeightFormat:
    """How weights are stored. Sixteen bits mean float16: no groups, and no act-order."""

    bits: int
    group_size: int = 128
    symmetric: bool = True

    @property
    def name(self) -> str:
        """As tables print it: fp16, or int4-g128."""
        return "fp16" if self.bits == 16 else f"int{self.bits}-g{self.group_size}"

    def groups(self, K: int) -> int:
        """Groups of a weight of K rows; none in float16."""
        return 0 if self.bits == 16 else ceil_div(K, self.group_size)


FP16 = WeightFormat(16)
INT4 = WeightFormat(4)


def weight_bytes(K: int, N: int, form: WeightFormat, groups: int | None = None) -> int:
    """Bytes of a (K, N) weight: packed codes, scales of `groups` groups, and packed zeros where it is not symmetric.

    groups  default: those of K rows in order; a rank that holds scattered rows needs the scales of more
    """
    groups = form.groups(K) if groups is None else groups
    zeros = 0 if form.symmetric else ceil_div(groups * N * form.bits, 8)
    return ceil_div(K * N * packed_bits(form.bits), 8) + groups * N * SCALE_BYTES + zeros


def gemm_us(M: int, N: int, K: int, form: WeightFormat, gpu: Gpu, extra_bytes: float = 0.0) -> float:
    """Time of (M, K) @ (K, N): the longer of memory traffic and arithmetic, plus a launch.

    extra_bytes  what the kernel reads beyond weight and activations: scales of foreign groups, an index
    """
    nbytes = weight_bytes(K, N, form) + M * (K + N) * ACTIVATION_BYTES + extra_bytes
    arithmetic_us = 2 * M * N * K / (gpu.fp16_tflops * gpu.compute_fraction * 1e6)
    return max(gpu.read_us(nbytes), arithmetic_us) + gpu.launch_us


def permute_us(M: int, columns: int, gpu: Gpu) -> float:
    """Time of x[:, perm] with `columns` columns: read and write them, read the index, one launch."""
    return gpu.read_us(2 * M * columns * ACTIVATION_BYTES + columns * INDEX_BYTES) + gpu.launch_us
