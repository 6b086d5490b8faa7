// rmsnorm_gather: RMSNorm in another order of columns.   caller: cutpq/ops/gather.py
//   y[m, j] = x[m, k] * weight[k] / sqrt(mean(x[m]^2) + epsilon),   k = perm[j]
// Written in the order that the next weight wants, so that the order costs no pass of its own. In float32, rounded
// once. A block owns a row and keeps it in shared memory, since it is read twice and the second time in any order.
// The sum of squares is taken in a fixed order: the same input gives the same bits.
#include "target.cuh"
#include "tile/block_sum.cuh"
#include "tile/weighted_row.cuh"

// The row into shared memory, 16 bytes at a time; returns this thread's share of the sum of squares.
DEVICE float stage_row(const WeightedRow& staged, const act_t* row, const act_t* weight, int K) {
  float squares = 0;
  for (int k = 8 * threadIdx.x; k < K; k += 8 * THREADS)
    staged.put(k, *reinterpret_cast<const uint4*>(row + k), *reinterpret_cast<const uint4*>(weight + k), squares);
  return squares;
}

extern "C" __global__ void __launch_bounds__(THREADS)
rmsnorm_gather(const act_t* __restrict__ x,       // (M, K)
               const act_t* __restrict__ weight,  // (K,), in the order of x
               const int* __restrict__ perm,      // (K,)
               act_t* __restrict__ y,             // (M, K)
               int K,                             // a multiple of 8
               float epsilon) {
  DYNAMIC_SHARED(smem);
  Carver carver(smem);
  float* smem_sums = carver.take<float>(THREADS / 32);
  const WeightedRow staged = {carver.take<u32>(K)};

  const size_t row = (size_t)blockIdx.x * K;
  const float squares = block_sum(smem_sums, stage_row(staged, x + row, weight, K));  // and a barrier: it is complete
  staged.write(y + row, perm, rsqrtf(squares / float(K) + epsilon), K);
}
