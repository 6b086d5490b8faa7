// gemm_w4a16: activations times weights of 4 bits, or of 8 where BITS says so.   caller: cutpq/ops/gemm.py
//   y[m, n] = act(sum over k of x[m, k] * w[k, n] + bias[n]),   w = (code - zero) * scale rounded to act_t
// The kernel is bound by the bytes of the weight, which it reads from global memory once, as codes. Codes are
// stored in the order of mma fragments (tile/codes_fragments.cuh), pass through a ring of STAGES buffers in shared
// memory and become 16-bit numbers only in registers. Tensor cores compute y^T = w^T x^T: there the tokens are the side
// of mma that is eight wide, not the one of sixteen, so that few tokens waste less.
//
// The weight is cut into units: tiles of BLOCK_N columns by BLOCK_K rows. A block of WARPS_N by WARPS_K warps
// multiplies one unit at a time, each warp a strip of 64 columns by a slab of SLAB rows, and goes down one column of
// units or, under split-K, a run of it (tile/gemm_problem.cuh). Partial sums are added in float32 in a fixed order,
// first over warps and then over blocks, and the result is rounded once.
//
// SCALE_LOOKUP  0 groups of one size (scales_grouped.cuh)   1, 2 every row has its own group (scales_by_row.cuh)
// ZERO          the zero point that all groups share, or -1 where `zeros` holds each group's
// PDL           launched by programmatic dependent launch: the ring fills with weights while the kernel before this one,
//               which writes x, still runs
#include "ptx/dependent_launch.cuh"
#include "tile/mma_slab.cuh"
#include "tile/split_k.cuh"
#include "tile/store_y.cuh"

struct SharedMemory {
  uint4 *x, *w;
  float4* sums;
  u32* arrived;

  __device__ __forceinline__ explicit SharedMemory(unsigned char* smem) {
    Carver carver(smem);
    x = carver.take<uint4>(STAGES * X_STAGE, 128);
    w = carver.take<uint4>(max(STAGES * W_STAGE, REDUCTION));
    sums = reinterpret_cast<float4*>(w);  // partial sums reuse the ring after its last codes were read
    arrived = carver.take<u32>(4);
  }
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM)
gemm_w4a16(const act_t* __restrict__ x,      // (M, K)
           const uint4* __restrict__ words,  // (strips, tiles_k16, BITS / 4, 32) codes as mma fragments
           const half* __restrict__ scales,  // (G, strips, 8, 8)
           const u8* __restrict__ zeros,     // (G, strips, 8, 8)
           const int* __restrict__ g_idx,    // (16 * tiles_k16,), or null where SCALE_LOOKUP is 0
           const float* __restrict__ bias,   // (N,), or null
           act_t* __restrict__ y,            // (M, N), or (M, N / 2) where GATED
           float4* __restrict__ workspace,   // (columns of units, gridDim.x, gridDim.y, TILE) partial sums
           u32* __restrict__ arrivals,       // (columns of units, gridDim.x) counters, zero before and after
           int M,
           int N,            // a multiple of 8
           int K,            // a multiple of 8
           int strips,       // N / 64, rounded up
           int tiles_k16) {  // K / 16, rounded up to a multiple of 4
  DYNAMIC_SHARED(smem);
  const SharedMemory shared(smem);
  const Place at(threadIdx.x);
  const Problem p(x, words, scales, zeros, g_idx, M, N, K, strips, tiles_k16);
  XRing ring_x(shared.x, p, at);
  WRing ring_w(shared.w, p, at);
  ScaleLoader scale_loader(p, at);
  const auto load_weights = [&](int stage, int unit) {
    if (unit < p.units) {
      ring_w.load(stage, unit);
      if constexpr (SCALE_LOOKUP == UNIFORM) scale_loader.load(ring_w, stage, unit);
    }
    ring_w.go_down(), scale_loader.go_down();
  };
  const auto load_x = [&](int stage, int unit) {
    if (unit < p.units) ring_x.load(stage, unit, p);
    ring_x.go_down();
    cp_async_commit();  // with the weights before it
  };

  if constexpr (PDL) {
#pragma unroll 1
    for (int i = 0; i < STAGES - 1; i++) load_weights(i, i);
    wait_for_earlier_kernels();
  }
  let_next_kernel_start();
#pragma unroll 1
  for (int i = 0; i < STAGES - 1; i++) {
    if constexpr (!PDL) load_weights(i, i);
    load_x(i, i);
  }
  Sums sums;
  clear(sums);
  int full = 0, empty = STAGES - 1;  // stages of the ring: the one to multiply, the one to fill
#pragma unroll 1
  for (int unit = 0; unit < p.units; unit++) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();  // all copies of this unit have landed, and all warps have left the stage to fill
    load_weights(empty, unit + STAGES - 1);
    load_x(empty, unit + STAGES - 1);
    mma_slab(sums, ring_x, ring_w, p, at, full, unit);
    empty = full, full = full + 1 == STAGES ? 0 : full + 1;
  }
  __syncthreads();  // all warps have read the ring, which partial sums now overwrite
  reduce_over_warps(shared.sums, sums, at);
  if (gridDim.y == 1 || reduce_over_blocks(shared.sums, shared.arrived, workspace, arrivals, p))
    store_y(y, shared.sums, bias, p);
}
