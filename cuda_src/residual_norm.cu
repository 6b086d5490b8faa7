// residual_norm: what follows a sum over the ranks in a transformer, in one pass.   caller: cutpq/ops/residual_norm.py
//   residual[m, k] += total[m, k]
//   y[m, j] = residual[m, k] * weight[k] / sqrt(mean(residual[m]^2) + epsilon),   k = perm[j]          RMSNorm
//   y[m, j] = (residual[m, k] - mean) / sqrt(variance + epsilon) * weight[k] + bias[k]                 LayerNorm: CENTER
// perm is the row order of the next weight: the permutation costs no pass over memory of its own. The residual is rounded
// after the addition, and the norm is computed in float32 from the rounded residual: the bits are those of an addition and
// rmsnorm_gather. A block owns a row and keeps it in shared memory. Sums are added in a fixed order: the same input gives
// the same bits.
#include "ptx/dependent_launch.cuh"
#include "target.cuh"
#include "tile/block_sum.cuh"
#include "tile/weighted_row.cuh"

// Eight numbers of the residual with the total added, as they are stored; the total may be missing.
DEVICE uint4 add_eight(const act_t* residual, const act_t* total) {
  const uint4 old = *reinterpret_cast<const uint4*>(residual);
  if (!total) return old;
  using Two = Number<DTYPE>;
  float v[8], term[8];
  load_eight(v, residual, 0, 8);
  load_eight(term, total, 0, 8);
#pragma unroll
  for (int i = 0; i < 8; i++) v[i] = __fadd_rn(v[i], term[i]);
  return make_uint4(as_u32(Two::pair(v[0], v[1])), as_u32(Two::pair(v[2], v[3])), as_u32(Two::pair(v[4], v[5])),
                    as_u32(Two::pair(v[6], v[7])));
}

// The sum of the columns that this thread stored itself, and of their squared differences from the mean.
DEVICE float row_sum(const WeightedRow& staged, int K) {
  float sum = 0;
  for (int k = 8 * threadIdx.x; k < K; k += 8 * THREADS)
#pragma unroll
    for (int i = 0; i < 8; i++) sum += to_float(as_pair<WeightedRow::Pair>(staged.columns[k + i]).x);
  return sum;
}
DEVICE float row_squares(const WeightedRow& staged, float mean, int K) {
  float squares = 0;
  for (int k = 8 * threadIdx.x; k < K; k += 8 * THREADS)
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const float difference = to_float(as_pair<WeightedRow::Pair>(staged.columns[k + i]).x) - mean;
      squares = fmaf(difference, difference, squares);
    }
  return squares;
}

// y[j] = (number - mean) * factor * weight + bias of column perm[j], rounded once.
DEVICE void write_centred(const WeightedRow& staged, act_t* y, const int* perm, const act_t* bias, float mean,
                          float factor, int K) {
  for (int j = 8 * threadIdx.x; j < K; j += 8 * THREADS) {
    float v[8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const int k = perm[j + i];
      const WeightedRow::Pair column = as_pair<WeightedRow::Pair>(staged.columns[k]);
      v[i] = fmaf((to_float(column.x) - mean) * factor, to_float(column.y), to_float(bias[k]));
    }
    store_eight(y, j, K, v);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS)
residual_norm(const act_t* __restrict__ total,   // (M, K), or null: nothing is added
              act_t* __restrict__ residual,      // (M, K), in and out
              const act_t* __restrict__ weight,  // (K,), in the column order of the residual
              const act_t* __restrict__ bias,    // (K,), in the same order; null without CENTER
              const int* __restrict__ perm,      // (K,)
              act_t* __restrict__ y,             // (M, K)
              int K,                             // a multiple of 8
              float epsilon) {
  DYNAMIC_SHARED(smem);
  Carver carver(smem);
  float* smem_sums = carver.take<float>(THREADS / 32);
  float* smem_squares = carver.take<float>(THREADS / 32);
  const WeightedRow staged = {carver.take<u32>(K)};
  let_next_kernel_start();

  const size_t row = (size_t)blockIdx.x * K;
  float squares = 0;
  for (int k = 8 * threadIdx.x; k < K; k += 8 * THREADS) {
    const uint4 numbers = add_eight(residual + row + k, total ? total + row + k : nullptr);
    if (total) *reinterpret_cast<uint4*>(residual + row + k) = numbers;
    staged.put(k, numbers, *reinterpret_cast<const uint4*>(weight + k), squares);
  }
  if (CENTER) {
    const float mean = block_sum(smem_sums, row_sum(staged, K)) / float(K);
    squares = row_squares(staged, mean, K);
    const float variance = block_sum(smem_squares, squares) / float(K);  // and a barrier: the row is complete
    write_centred(staged, y + row, perm, bias, mean, rsqrtf(variance + epsilon), K);
  } else {
    const float mean_square = block_sum(smem_squares, squares) / float(K);  // and a barrier: the row is complete
    staged.write(y + row, perm, rsqrtf(mean_square + epsilon), K);
  }
}
