// gemm_w4a16: activations times 4-bit weights.   caller: cutpq/ops/gemm.py
//   y[m, n] = act(sum over k of x[m, k] * w[k, n] + bias[n]),   w = (code - zero) * scale rounded to act_t
// The weight crosses the memory bus once, as codes; all else is arranged around that. It is stored in fragments of mma
// (tile/codes_fragments.cuh), streams through a ring of STAGES buffers and becomes 16-bit numbers in registers only.
// Tensor cores compute y^T = w^T x^T, so that eight tokens, not sixteen, are the least that costs time.
//
// A block of WARPS_N by WARPS_K warps works on units of BLOCK_N columns by BLOCK_K rows: each warp on a strip of 64
// columns and a slab of SLAB rows. It goes down one column of units, or a part of it (tile/gemm_problem.cuh).
// Sums are taken in float32, over warps and blocks in a fixed order, and rounded once.
//
// SCALE_LOOKUP  0 groups of one size (scales_grouped.cuh)   1, 2 a group for every row (scales_by_row.cuh)
// ZERO   the zero point of all groups, or -1 where `zeros` has them
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
    sums = reinterpret_cast<float4*>(w);  // when the last codes have been read
    arrived = carver.take<u32>(4);
  }
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM)
gemm_w4a16(const act_t* __restrict__ x,      // (M, K)
           const uint4* __restrict__ words,  // (strips, tiles_k16, 32) codes in fragments
           const half* __restrict__ scales,  // (G, strips, 8, 8)
           const u8* __restrict__ zeros,     // (G, strips, 8, 8)
           const int* __restrict__ g_idx,    // (16 * tiles_k16,), or null where SCALE_LOOKUP is 0
           const float* __restrict__ bias,   // (N,), or null
           act_t* __restrict__ y,            // (M, N), or (M, N / 2) where GATED
           float4* __restrict__ workspace,   // (columns of units, gridDim.x, gridDim.y, TILE)
           u32* __restrict__ arrivals,       // (columns of units, gridDim.x), zero before and after
           int M,
           int N,            // a multiple of 8
           int K,            // a multiple of 8
           int strips,       // N / 64, rounded up
           int tiles_k16) {  // K / 16, rounded up to whole fours
  DYNAMIC_SHARED(smem);
  const SharedMemory shared(smem);
  const Place at(threadIdx.x);
  const Problem p(x, words, scales, zeros, g_idx, M, N, K, strips, tiles_k16);
  XRing ring_x(shared.x, p, at);
  WRing ring_w(shared.w, p, at);
  ScaleLoader scale_loader(p, at);
  const auto load = [&](int stage, int unit) {
    if (unit < p.units) {
      ring_w.load(stage, unit);
      ring_x.load(stage, unit, p);
      if constexpr (SCALE_LOOKUP == UNIFORM) scale_loader.load(ring_w, stage, unit);
    }
    ring_w.go_down(), ring_x.go_down(), scale_loader.go_down();
    cp_async_commit();
  };

#pragma unroll 1
  for (int i = 0; i < STAGES - 1; i++) load(i, i);
  Sums sums;
  clear(sums);
  int full = 0, empty = STAGES - 1;  // stages
#pragma unroll 1
  for (int unit = 0; unit < p.units; unit++) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();  // this unit has landed for all, and the stage before it is free
    load(empty, unit + STAGES - 1);
    mma_slab(sums, ring_x, ring_w, p, at, full, unit);
    empty = full, full = full + 1 == STAGES ? 0 : full + 1;
  }
  __syncthreads();  // the ring is free for sums
  reduce_over_warps(shared.sums, sums, at);
  if (gridDim.y == 1 || reduce_over_blocks(shared.sums, shared.arrived, workspace, arrivals, p))
    store_y(y, shared.sums, bias, p);
}
