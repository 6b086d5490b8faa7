// Packed weights, global -> shared: every lane copies the very 16 bytes that it will consume, two for its
// slab of 32 rows, and reads them back with one load each. They are read once, so they leave L2 first.
#pragma once
#include "../ptx/cp_async.cuh"
#include "gemm_problem.cuh"

constexpr int W_STAGE = 2 * THREADS;  // of 16 bytes

// Start copying the slab that this warp takes of a unit; zeros beyond the last row or column of `words`.
DEVICE void load_w(uint4* smem_w, const Problem& p, const Place& at, int n, int k, u64 policy) {
  const int strip = n / STRIP + at.warp_n;
#pragma unroll
  for (int step = 0; step < 2; step++) {
    const int k16 = k / 16 + 2 * at.warp_k + step;
    const u32 target = shared_address(smem_w + step * THREADS + threadIdx.x);
    if (strip < p.strips && k16 < p.tiles_k16)
      cp_async_16_hint(target, p.words + ((size_t)strip * p.tiles_k16 + k16) * 32 + at.lane, policy);
    else cp_async_16(target, p.words, false);
  }
}

// The words of this lane for 16 rows: one for each 16 of its 64 columns.
DEVICE uint4 w_fragment(const uint4* smem_w, int step) { return smem_w[step * THREADS + threadIdx.x]; }
