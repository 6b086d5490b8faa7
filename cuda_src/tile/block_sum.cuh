// A sum over all threads of a block, always in the same order.
#pragma once
#include "../target.cuh"

// The sum of `value` over the block, for every thread the same. A barrier for all of its threads.
DEVICE float block_sum(float* smem_sums, float value) {
#pragma unroll
  for (int distance = 16; distance; distance /= 2) value += __shfl_xor_sync(FULL_WARP, value, distance);
  if (threadIdx.x % 32 == 0) smem_sums[threadIdx.x / 32] = value;
  __syncthreads();  // sums of all warps
  float sum = 0;
#pragma unroll
  for (int warp = 0; warp < THREADS / 32; warp++) sum += smem_sums[warp];
  return sum;
}
