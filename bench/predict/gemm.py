"""What gemm_w4a16 should take on a GPU that is not here, from bytes and from counted instructions. All predicted.

time = launch + first bytes + work + adding up.  The work takes the longest of
memory  codes, scales, g_idx and x from memory, y to it, at the bandwidth of a copy
L2      the same, what blocks read again (x, codes of further tokens, scales by row), and sums of columns that
        several blocks share
issue   instructions that the warps issue (machine_code.py), four a clock and multiprocessor
integer those of half rate, two a clock
tensor  products, tokens rounded up to whole tiles
and grows by the tail: the multiprocessor with the most blocks sets the time of what it computes.
From gemm_config.dequant_from tokens on the time is that of `dequant`, through memory, and of the library.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from models.gemm_layers import GROUP_SIZE, Layer

from cutpq.array import ceil_div
from cutpq.cost.gpus import GPUS
from cutpq.kernels.config import FLOAT16, Device
from cutpq.ops.gemm_config import GemmConfig, GemmProblem, dequant_columns, dequant_from, select_gemm
from predict import machine_code

LIBRARY_TILE = 128  # columns and tokens of a thread block of the library's GEMM: assumed


@dataclass(frozen=True)
class Machine:
    """A GPU as the prediction sees it.

    copy_gb_s          what a copy reaches; H200: stated for one, A100: the same share of its data sheet's bandwidth
    clock_ghz          the clock at which the data sheet's tensor peak is that many products (sm_80 2048 flops a clock
                       and multiprocessor, sm_90 4096)
    l2_gb_s            A100: 5120 bytes a clock; H200: for want of a published figure the same bytes a clock
    l2_bytes           of the data sheets
    tensor_fraction    of the tensor peak that mma.sync reaches: fitted to published times of Marlin (calibrate.py)
    library_fraction   of the tensor peak that cuBLAS reaches in large products: fitted to published times of it
    issue_fraction     of the four instructions a clock: assumed
    warp_fraction      of one scheduler's slots that one warp can fill: what Marlin's 8 warps are seen to fill at least
    launch_us          one empty node of a graph after the other: assumed
    latency_us         a load from memory: assumed, of published microbenchmarks' order
    """

    name: str
    arch: str
    device: Device
    copy_gb_s: float
    clock_ghz: float
    tflops: float
    l2_bytes: int
    tensor_fraction: float
    library_fraction: float
    issue_fraction: float = 0.75
    warp_fraction: float = 0.22
    launch_us: float = 1.5
    latency_us: float = 0.7

    @property
    def l2_gb_s(self) -> float:
        """Bandwidth of L2 in GB/s: 5120 bytes a clock."""
        return 5120 * self.clock_ghz

    def tensor_us(self, flops: float) -> float:
        """Time of so many flops by mma.sync on all multiprocessors."""
        return flops / (self.tflops * self.tensor_fraction * 1e6)


COPY = 4300 / 4800  # a copy's stated share of the data sheet's bandwidth on an H200
MACHINES = {
    machine.name: machine
    for machine in (
        Machine("h200", "sm_90a", Device(90, 132), COPY * 4800, 1.83, GPUS["h200"].fp16_tflops, 50 << 20, 0.42, 0.7),
        Machine("h100", "sm_90a", Device(90, 132), COPY * 3350, 1.83, GPUS["h100"].fp16_tflops, 50 << 20, 0.42, 0.7),
        Machine("a100", "sm_80", Device(80, 108), COPY * 2039, 1.41, GPUS["a100"].fp16_tflops, 40 << 20, 0.72, 0.82),
    )
}


@dataclass(frozen=True)
class Prediction:
    """Times in us; `work` by what it needs, each as if nothing else took time.

    read_bytes  what must cross the memory bus once: the numerator of GB_s
    per_load    instructions for each 16-byte load of codes, None where the library multiplies
    """

    time_us: float
    read_bytes: int
    work: dict[str, float]
    tail_us: float
    fixed_us: float
    per_load: float | None

    @property
    def bound(self) -> str:
        """What takes most of the time."""
        parts = self.work | {"tail wave": self.tail_us, "start and end": self.fixed_us}
        return max(parts, key=lambda part: parts[part])


def predict(layer: Layer, M: int, scheme: str, machine: Machine) -> Prediction:
    """One product of the layer at M tokens under a scheme of gemm_layers.SCHEMES."""
    problem = problem_of(layer, M, scheme)
    if dequant_from(machine.device) <= M:
        return predict_library(layer, M, scheme, machine)
    config, cuts = select_gemm(problem, machine.device)
    return _by_kernel(layer, problem, scheme, config, cuts, machine)


def predict_library(layer: Layer, M: int, scheme: str, machine: Machine) -> Prediction:
    """The same product by dequantizing first, whatever M."""
    return _by_library(layer, problem_of(layer, M, scheme), groups(layer, scheme), machine)


def _by_kernel(
    layer: Layer, problem: GemmProblem, scheme: str, config: GemmConfig, cuts: int, machine: Machine
) -> Prediction:
    in_row_ways = _share_of_mixed_slabs(layer, problem, config)
    instructions, integer, loads = _code(config, machine.arch, in_row_ways)
    units_k = ceil_div(problem.K, config.block_k)
    columns = ceil_div(problem.N, config.block_n)
    token_blocks, blocks = ceil_div(problem.M, config.BLOCK_M), columns * cuts
    read = memory_bytes(layer, problem, groups(layer, scheme))

    # What a block does, and how many the busiest multiprocessor has.
    warps = config.WARPS_N * config.WARPS_K
    units = ceil_div(units_k, cuts)
    most = ceil_div(blocks * token_blocks, machine.device.sms)
    mean = blocks * token_blocks / machine.device.sms * (units_k / cuts / units)
    together = min(config.BLOCKS_PER_SM, most)
    filled = min(machine.issue_fraction, machine.warp_fraction * together * warps / 4)
    slots = machine.clock_ghz * 1e3 * filled  # issue slots that one scheduler fills in a microsecond
    rate = machine.l2_gb_s * 1e3 / machine.device.sms  # bytes that one multiprocessor reads from L2 in a microsecond
    per_block = {
        "issue slots": units * warps * instructions / (4 * slots),
        "integer": units * warps * integer / (2 * slots),
        "L2": units * config.block_k * (config.block_n * config.BITS / 8 + 2 * min(problem.M, config.BLOCK_M)) / rate,
        "tensor": _tensor_us(config, units, machine),
    }
    computed = {what: mean * us for what, us in per_block.items() if what != "L2"}
    longest = most * max(per_block.values())

    again: float = (token_blocks - 1) * read.codes + (columns - 1) * read.x
    again += _scales_by_row(problem, config, in_row_ways, token_blocks)
    shared = 2 * 4 * problem.M * config.block_n * blocks if cuts > 1 else 0
    work = computed | {
        "memory": read.total / machine.copy_gb_s / 1e3,
        "L2": (read.total + again + shared) / machine.l2_gb_s / 1e3,
    }
    busy = max(*work.values(), longest)
    fixed = machine.launch_us + machine.latency_us + (4 * machine.latency_us if cuts > 1 else machine.latency_us)
    if scheme == "local" and layer.shares_rows:  # gather_columns runs before the product
        fixed += machine.launch_us + 2 * machine.latency_us
    return Prediction(fixed + busy, read.total, work, busy - max(work.values()), fixed, instructions / loads)


def pdl_gain_us(machine: Machine) -> float:
    """What programmatic dependent launch should save of a product up to 16 tokens, at most; nothing below sm_90.

    The launch and the weight's first bytes pass while the kernel before it ends; x is then still to be read. It takes
    free shared memory: multiprocessors that the kernel before fills have none.
    """
    return machine.launch_us + machine.latency_us if machine.device.arch >= 90 else 0.0


def library_us(M: int, K: int, N: int, machine: Machine) -> float:
    """The library's fp16 product: waves of square tiles, or the bytes of the weight, whichever takes longer."""
    tile = min(LIBRARY_TILE, ceil_div(M, 16) * 16)
    waves = ceil_div(ceil_div(M, tile) * ceil_div(N, LIBRARY_TILE), machine.device.sms)
    flops = 2 * tile * LIBRARY_TILE * K * waves * machine.device.sms
    if M < LIBRARY_TILE:  # the library splits K, so that all multiprocessors have work
        flops = 2 * tile * K * N
    computing = flops / (machine.tflops * machine.library_fraction * 1e6)
    moving = 2 * (K * N + M * K + M * N) / machine.copy_gb_s / 1e3
    return machine.launch_us + 2 * machine.latency_us + max(computing, moving)


def problem_of(layer: Layer, M: int, scheme: str) -> GemmProblem:
    """What matmul would ask select_gemm for."""
    scale_lookup = {"local": "ascending", "unordered": "scattered"}.get(scheme, "uniform")
    if scheme == "local" and not layer.shares_rows:
        scale_lookup = "uniform"  # the rank holds whole groups, which sorting makes contiguous
    pad = lambda n: ceil_div(n, 64) * 64  # noqa: E731
    return GemmProblem(
        M,
        pad(layer.N),
        pad(layer.K),
        FLOAT16,
        scale_lookup,
        GROUP_SIZE if scale_lookup == "uniform" else 0,
        layer.zero,
        bits=layer.bits,
    )


def groups(layer: Layer, scheme: str) -> int:
    """Groups whose scales the rank reads."""
    return layer.groups_in_order if scheme in ("plain", "tp-aware") else layer.groups_in_disk_order


@dataclass(frozen=True)
class Bytes:
    """What one product reads and writes once."""

    codes: int
    scales: int
    g_idx: int
    x: int
    y: int

    @property
    def total(self) -> int:
        """All of them together."""
        return self.codes + self.scales + self.g_idx + self.x + self.y


def memory_bytes(layer: Layer, problem: GemmProblem, groups: int) -> Bytes:
    """From the packed layout (cutpq/weights/pack.py); a symmetric weight has no zeros to read."""
    g_idx = 0 if problem.scale_lookup == "uniform" else 4 * problem.K
    codes = problem.N * problem.K * problem.bits // 8
    return Bytes(codes, 2 * groups * problem.N, g_idx, 2 * problem.M * layer.K, 2 * problem.M * layer.N)


def _share_of_mixed_slabs(layer: Layer, problem: GemmProblem, config: GemmConfig) -> float:
    """Slabs whose rows look their scales up one by one."""
    if problem.scale_lookup != "ascending":
        return float(problem.scale_lookup == "scattered")
    return min(1.0, (config.SLAB - 1) / _mean_group(layer))


def _mean_group(layer: Layer) -> float:
    return max(1.0, layer.K / layer.groups_in_disk_order)


def _code(config: GemmConfig, arch: str, in_row_ways: float) -> tuple[float, float, int]:
    """Instructions and integer instructions of a warp's unit: by group, by row, or of both in that proportion."""
    by_group = replace(config, SCALE_LOOKUP=0, GROUP_SIZE=GROUP_SIZE)
    by_row = replace(config, SCALE_LOOKUP=2, GROUP_SIZE=0)
    ways = [(c, share) for c, share in ((by_group, 1 - in_row_ways), (by_row, in_row_ways)) if share]
    counts = [(machine_code.unit_code(c, arch), share) for c, share in ways]
    return (
        sum(code.instructions * share for code, share in counts),
        sum(code.integer * share for code, share in counts),
        counts[0][0].loads,
    )


def _tensor_us(config: GemmConfig, units: int, machine: Machine) -> float:
    flops = 2 * config.BLOCK_M * config.block_n * config.block_k * units
    return machine.tensor_us(flops * machine.device.sms)


def _scales_by_row(problem: GemmProblem, config: GemmConfig, share: float, token_blocks: int) -> float:
    """Bytes of scales through L2: a row's 64 scales are 128 bytes, which L1 keeps only while rows are sorted."""
    if problem.scale_lookup != "scattered":
        return 0.0
    return share * token_blocks * 2.0 * problem.K * problem.N


def _by_library(layer: Layer, problem: GemmProblem, groups: int, machine: Machine) -> Prediction:
    """The weight in 16 bits through memory, as a whole if it is not too large, and the library's product."""
    step = dequant_columns(layer.K)
    widths = [min(step, layer.N - n) for n in range(0, layer.N, step)]
    read = memory_bytes(layer, problem, groups)
    dequant = (read.codes + 2 * layer.K * layer.N) / machine.copy_gb_s / 1e3
    product = sum(library_us(problem.M, layer.K, width, machine) for width in widths)
    whole = 2 * problem.M * layer.K * layer.N / (machine.tflops * machine.library_fraction * 1e6)
    fixed = len(widths) * machine.launch_us
    work = {"dequant": dequant, "tensor": whole}
    return Prediction(fixed + dequant + product, read.total, work, max(0.0, product - whole), fixed, per_load=None)
