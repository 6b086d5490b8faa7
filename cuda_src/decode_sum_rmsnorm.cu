// decode_sum_rmsnorm: the last step of a compressed sum, and what follows it in a transformer.
//                                                                                     caller: cutpq/wire.py
//   sum[m, k] = the wires' sum (decode_sum);   residual[m, k] += sum[m, k]
//   y[m, j] = residual[m, k] * weight[k] / sqrt(mean(residual[m]^2) + epsilon),   k = perm[j]
// y is in the column order of the next weight, so that neither compression nor order costs a pass. The sum and the
// residual are rounded as if each step were a kernel of its own: the bits are those of decode_sum, an addition and
// rmsnorm_gather. A block owns a row and keeps it in shared memory.
#include "target.cuh"
#include "tile/block_sum.cuh"
#include "tile/block_wire.cuh"
#include "tile/eight.cuh"
#include "tile/rank_sum.cuh"
#include "tile/share.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
decode_sum_rmsnorm(const u8* __restrict__ wires,      // of RANKS ranks
                   act_t* __restrict__ residual,      // (M, K), in and out
                   const act_t* __restrict__ weight,  // (K,), in the order of residual
                   const int* __restrict__ perm,      // (K,)
                   act_t* __restrict__ y,             // (M, K)
                   int wire_bytes,                    // from one rank's wire to the next
                   int shares,                        // that each wire consists of
                   int n,                             // M * K
                   int K,                             // a multiple of 8
                   float epsilon) {
  DYNAMIC_SHARED(smem);
  Carver carver(smem);
  float* smem_sums = carver.take<float>(THREADS / 32);
  act_t* smem_row = carver.take<act_t>(K);

  const size_t row = size_t(blockIdx.x) * K;
  float squares = 0;
  for (int k = 8 * threadIdx.x; k < K; k += 8 * THREADS) {
    const int block = int((row + k) / BLOCK);
    const Share share = share_of<BlockWire>(n, shares, share_with<BlockWire>(n, shares, block));
    const int group = int((row + k) / 8) - share.first * GROUPS_OF_BLOCK;
    float sum[8], v[8];
    sum_of_ranks<BlockWire>(sum, wires + share.offset, wire_bytes, share.granules, group);
    load_eight(v, residual, row + k, n);
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = __fadd_rn(v[i], to_float(Number<DTYPE>::one(sum[i])));
    store_eight(residual, row + k, n, v);
    store_eight(smem_row, k, K, v);
#pragma unroll
    for (int i = 0; i < 8; i++) squares = fmaf(to_float(smem_row[k + i]), to_float(smem_row[k + i]), squares);
  }
  const float mean = block_sum(smem_sums, squares) / float(K);  // and a barrier: the row is complete
  const float factor = rsqrtf(mean + epsilon);
  for (int j = threadIdx.x; j < K; j += THREADS) {
    const int k = perm[j];
    y[row + j] = Number<DTYPE>::one(to_float(smem_row[k]) * factor * to_float(weight[k]));
  }
}
