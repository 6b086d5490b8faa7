// decode_sum_rmsnorm: a compressed sum, added to the residual and normalized.   caller: cutpq/codecs/launch.py
//   sum[m, k] = decode_sum of the wires;   residual[m, k] += sum[m, k]
//   y[m, j] = residual[m, k] * weight[k] / sqrt(mean(residual[m]^2) + epsilon),   k = perm[j]
// The last step of a compressed all-reduce fused with the RMSNorm that follows it; perm is the row order of the next
// weight. The sum and the residual are rounded as if each step were a kernel of its own, so that the bits equal those
// of decode_sum, an addition and rmsnorm_gather. A block owns a row and keeps it in shared memory.
#include "ptx/dependent_launch.cuh"
#include "target.cuh"
#include "tile/block_sum.cuh"
#include "tile/block_wire.cuh"
#include "tile/eight.cuh"
#include "tile/rank_sum.cuh"
#include "tile/share.cuh"
#include "tile/weighted_row.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
decode_sum_rmsnorm(const u8* __restrict__ wires,      // wires of RANKS ranks
                   act_t* __restrict__ residual,      // (M, K), updated in place
                   const act_t* __restrict__ weight,  // (K,), in the column order of residual
                   const int* __restrict__ perm,      // (K,)
                   act_t* __restrict__ y,             // (M, K)
                   int wire_bytes,                    // stride between ranks' wires
                   int shares,                        // shares in each wire
                   int n,                             // M * K
                   int K,                             // a multiple of 8
                   float epsilon) {
  DYNAMIC_SHARED(smem);
  Carver carver(smem);
  float* smem_sums = carver.take<float>(THREADS / 32);
  const WeightedRow staged = {carver.take<u32>(K)};
  let_next_kernel_start();

  using Two = Number<DTYPE>;
  const u32 row = blockIdx.x * K;
  float squares = 0;
  for (int k = 8 * threadIdx.x; k < K; k += 8 * THREADS) {
    const int block = int((row + k) / BLOCK);
    const Share share = share_of<BlockWire>(n, shares, share_with<BlockWire>(n, shares, block));
    const int group = int((row + k) / 8) - share.first * GROUPS_OF_BLOCK;
    float sum[8], v[8];
    sum_of_ranks(sum, wires + share.offset, wire_bytes, share.granules, group);
    load_eight(v, residual, row + k, n);
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = __fadd_rn(v[i], to_float(Number<DTYPE>::one(sum[i])));
    const uint4 rounded = make_uint4(as_u32(Two::pair(v[0], v[1])), as_u32(Two::pair(v[2], v[3])),
                                     as_u32(Two::pair(v[4], v[5])), as_u32(Two::pair(v[6], v[7])));
    *reinterpret_cast<uint4*>(residual + row + k) = rounded;
    staged.put(k, rounded, *reinterpret_cast<const uint4*>(weight + k), squares);
  }
  const float mean = block_sum(smem_sums, squares) / float(K);  // block_sum's barrier completes the staged row
  staged.write(y + row, perm, rsqrtf(mean + epsilon), K);
}
