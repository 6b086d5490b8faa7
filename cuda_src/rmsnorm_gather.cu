// rmsnorm_gather: RMSNorm with permuted columns.   caller: cutpq/ops/gather.py
//   y[m, j] = x[m, k] * weight[k] / sqrt(mean(x[m]^2) + epsilon),   k = perm[j]
// perm is the row order of the next weight: the permutation costs no pass over memory of its own. The norm is computed
// in float32 and rounded once. A block owns a row and keeps it in shared memory, because the row is read twice, the
// second time in the order of perm. The sum of squares is added in a fixed order: the same input gives the same bits.
#include "ptx/dependent_launch.cuh"
#include "target.cuh"
#include "tile/block_sum.cuh"
#include "tile/weighted_row.cuh"

// Copies the row into shared memory, 16 bytes at a time; returns the sum of squares of what this thread copied.
DEVICE float stage_row(const WeightedRow& staged, const act_t* row, const act_t* weight, int K) {
  float squares = 0;
  for (int k = 8 * threadIdx.x; k < K; k += 8 * THREADS)
    staged.put(k, *reinterpret_cast<const uint4*>(row + k), *reinterpret_cast<const uint4*>(weight + k), squares);
  return squares;
}

extern "C" __global__ void __launch_bounds__(THREADS)
rmsnorm_gather(const act_t* __restrict__ x,       // (M, K)
               const act_t* __restrict__ weight,  // (K,), in the column order of x
               const int* __restrict__ perm,      // (K,)
               act_t* __restrict__ y,             // (M, K)
               int K,                             // a multiple of 8
               float epsilon) {
  DYNAMIC_SHARED(smem);
  Carver carver(smem);
  float* smem_sums = carver.take<float>(THREADS / 32);
  const WeightedRow staged = {carver.take<u32>(K)};
  let_next_kernel_start();

  const size_t row = (size_t)blockIdx.x * K;
  // block_sum's barrier completes the staged row
  const float squares = block_sum(smem_sums, stage_row(staged, x + row, weight, K));
  staged.write(y + row, perm, rsqrtf(squares / float(K) + epsilon), K);
}
