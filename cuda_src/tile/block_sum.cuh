// Sum over the threads of a block, always added in the same order.
#pragma once
#include "../target.cuh"

// Returns the sum of `value` over the block to every thread. Contains a barrier.
DEVICE float block_sum(float* smem_sums, float value) {
#pragma unroll
  for (int distance = 16; distance; distance /= 2) value += __shfl_xor_sync(FULL_WARP, value, distance);
  if (threadIdx.x % 32 == 0) smem_sums[threadIdx.x / 32] = value;
  __syncthreads();  // the sums of all warps are stored
  float sum = 0;
#pragma unroll
  for (int warp = 0; warp < THREADS / 32; warp++) sum += smem_sums[warp];
  return sum;
}
