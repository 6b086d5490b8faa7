// Maximum over the threads of a block.
#pragma once
#include "../target.cuh"

// Returns the maximum of `value` over the block to every thread. Contains a barrier.
DEVICE float block_max(float* smem_largest, float value) {
#pragma unroll
  for (int distance = 16; distance; distance /= 2) value = fmaxf(value, __shfl_xor_sync(FULL_WARP, value, distance));
  if (threadIdx.x % 32 == 0) smem_largest[threadIdx.x / 32] = value;
  __syncthreads();  // the maxima of all warps are stored
  float largest = smem_largest[0];
#pragma unroll
  for (int warp = 1; warp < THREADS / 32; warp++) largest = fmaxf(largest, smem_largest[warp]);
  return largest;
}
