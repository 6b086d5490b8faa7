// Packed weights, global -> shared: every lane copies the very 16-byte words that it will consume, one for each 16
// rows of its slab, and reads them back with one load each. They are read once, so they leave L2 first.
#pragma once
#include "../ptx/cp_async.cuh"
#include "gemm_problem.cuh"

constexpr int W_STAGE = STEPS * THREADS;  // of 16 bytes

struct WLoader {
  const uint4* source;  // of this lane, in the slab that its warp takes of the unit
  int k16;              // of the slab
  bool strip_exists;
  u64 policy;

  __device__ __forceinline__ WLoader(const Problem& p, const Place& at, const Cursor& unit)
      : policy(evict_first_policy()) {
    go_to(p, at, unit);
  }

  __device__ __forceinline__ void go_to(const Problem& p, const Place& at, const Cursor& unit) {
    const int strip = unit.n() / STRIP + at.warp_n;
    k16 = unit.k() / 16 + STEPS * at.warp_k;
    source = p.words + ((size_t)strip * p.tiles_k16 + k16) * 32 + at.lane;
    strip_exists = strip < p.strips;
  }
  // To the next unit of the same column.
  __device__ __forceinline__ void go_down() { source += BLOCK_K / 16 * 32, k16 += BLOCK_K / 16; }

  // Start copying; zeros beyond the last row or column of `words`.
  __device__ __forceinline__ void load(uint4* smem_w, const Problem& p) const {
#pragma unroll
    for (int step = 0; step < STEPS; step++)
      cp_async_16_hint(shared_address(smem_w + step * THREADS + threadIdx.x), source + step * 32, policy,
                       strip_exists && k16 + step < p.tiles_k16);
  }
};

// The words of this lane for 16 rows: one for each 16 of its 64 columns.
DEVICE uint4 w_fragment(const uint4* smem_w, int step) { return smem_w[step * THREADS + threadIdx.x]; }
