// gemm_w4a16: activations times 4-bit weights.                                           caller: cutpq/gemm.py
//   y[m, n] = sum over k of x[m, k] * w[k, n] + bias[n],   w = (code - zero) * scale rounded to act_t
// The weight crosses the memory bus once, as codes; all else is arranged around that. It is stored in fragments of mma
// (tile/codes_fragments.cuh), streams through a ring of STAGES buffers and becomes 16-bit numbers in registers only.
// Tensor cores compute y^T = w^T x^T, so that eight tokens, not sixteen, are the least that costs time.
//
// A block of WARPS_N by WARPS_K warps works on units of BLOCK_N columns by BLOCK_K rows: each warp on a strip of 64
// columns and a slab of SLAB rows. gridDim.x blocks share all units evenly; gridDim.y is for tokens beyond BLOCK_M.
// Sums are taken in float32, over warps and blocks in a fixed order, and rounded once.
//
// ORDER  0 groups of one size (scales_grouped.cuh)   1, 2 a group for every row (scales_by_row.cuh)
// ZERO   the zero point of all groups, or -1 where `zeros` has them
#include "tile/mma_slab.cuh"
#include "tile/split_k.cuh"
#include "tile/store_y.cuh"

struct SharedMemory {
  uint4 *x, *w, *s, *z;
  float4* sums;
  u32* arrived;

  __device__ __forceinline__ explicit SharedMemory(unsigned char* smem) {
    Carver carver(smem);
    x = carver.take<uint4>(STAGES * X_STAGE, 128);
    w = carver.take<uint4>(STAGES * W_STAGE);
    s = carver.take<uint4>(ORDER == GROUPED ? STAGES * S_STAGE : 0);
    z = carver.take<uint4>(ORDER == GROUPED ? STAGES * Z_STAGE : 0);
    sums = carver.take<float4>(REDUCTION);
    arrived = carver.take<u32>(4);
  }
  __device__ __forceinline__ Stage stage(int i) const {
    return {x + i * X_STAGE, w + i * W_STAGE, s + i * S_STAGE, z + i * Z_STAGE};
  }
};

// Copies one unit after the other into stages.
struct Loader {
  Cursor unit;  // the next one
  XLoader x;
  WLoader w;

  __device__ __forceinline__ Loader(const Problem& p, const Place& at, const Cursor& first)
      : unit(first), x(p), w(p, at, first) {}

  __device__ __forceinline__ void load(const Stage& stage, const Problem& p, const Place& at) {
    w.load(stage.w, p);
    x.load(stage.x, p, unit.k());
    if constexpr (ORDER == GROUPED) load_scales(stage.s, stage.z, p, unit.n(), unit.k());
    unit.advance(p);
    if (unit.row == 0) w.go_to(p, at, unit);
    else w.go_down();
  }
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM)
gemm_w4a16(const act_t* __restrict__ x,      // (M, K)
           const uint4* __restrict__ words,  // (strips, tiles_k16, 32) codes in fragments
           const half* __restrict__ scales,  // (G, strips, 8, 8)
           const u8* __restrict__ zeros,     // (G, strips, 8, 8)
           const int* __restrict__ g_idx,    // (16 * tiles_k16,), or null where ORDER is 0
           const float* __restrict__ bias,   // (N,), or null
           act_t* __restrict__ y,            // (M, N), or (M, N / 2) where GATED
           float4* __restrict__ workspace,   // (gridDim.y, gridDim.x, 2, TILE)
           u32* __restrict__ arrivals,       // (gridDim.y, blocks of columns), zero before and after
           int M,
           int N,                            // a multiple of 8
           int K,                            // a multiple of 8
           int strips,                       // N / 64, rounded up
           int tiles_k16) {                  // K / 16, rounded up to whole fours
  DYNAMIC_SHARED(smem);
  const SharedMemory shared(smem);
  const Place at(threadIdx.x);
  const int units_k = (tiles_k16 * 16 + BLOCK_K - 1) / BLOCK_K, columns = (strips * STRIP + BLOCK_N - 1) / BLOCK_N;
  const Problem p = {x, words, scales, zeros, g_idx, M, N, K, strips, tiles_k16, units_k, units_k * columns,
                     int(blockIdx.y) * BLOCK_M};
  const int end = p.first_unit(blockIdx.x + 1);
  Cursor now(p, p.first_unit(blockIdx.x));
  Loader loader(p, at, now);

#pragma unroll 1
  for (int i = 0; i < STAGES - 1; i++) {
    if (loader.unit.unit < end) loader.load(shared.stage(i), p, at);
    cp_async_commit();
  }
  Sums sums;
  clear(sums);
  int full = 0, empty = STAGES - 1;  // stages
#pragma unroll 1
  for (; now.unit < end; now.advance(p)) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();  // this unit has landed for all; the stage before it is free, and so are the sums of a column
    if (loader.unit.unit < end) loader.load(shared.stage(empty), p, at);
    cp_async_commit();

    mma_slab(sums, shared.stage(full), p, at, now.n(), now.k());
    empty = full, full = full + 1 == STAGES ? 0 : full + 1;
    if (now.row + 1 < units_k && now.unit + 1 < end) continue;

    reduce_over_warps(shared.sums, sums, at);
    clear(sums);
    const SharedColumn sharing(p, now.column);
    u32* counter = arrivals + blockIdx.y * columns + now.column;
    if (!sharing.is_shared() || reduce_over_blocks(shared.sums, shared.arrived, workspace, counter, p, sharing))
      store_y(y, shared.sums, bias, p, now.n());
  }
}
