// A row of 16-bit numbers in shared memory, each beside its RMSNorm weight. The row is read in the order of a
// permutation; one 32-bit load then finds both, where a weight in global memory would cost a 32-byte sector and its
// latency.
#pragma once
#include "../ptx/bits.cuh"
#include "eight.cuh"

struct WeightedRow {
  using Pair = Number<DTYPE>::Pair;
  u32* columns;  // a number in the low half, its weight in the high half

  // Stores columns k ... k + 7 and adds the squares of their numbers to `squares`.
  __device__ __forceinline__ void put(int k, uint4 numbers, uint4 weights, float& squares) const {
    const u32 x[4] = {numbers.x, numbers.y, numbers.z, numbers.w};
    const u32 w[4] = {weights.x, weights.y, weights.z, weights.w};
#pragma unroll
    for (int i = 0; i < 4; i += 2)
      *reinterpret_cast<uint4*>(columns + k + 2 * i) =
          make_uint4(prmt(x[i], w[i], 0x5410), prmt(x[i], w[i], 0x7632), prmt(x[i + 1], w[i + 1], 0x5410),
                     prmt(x[i + 1], w[i + 1], 0x7632));
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const Pair two = as_pair<Pair>(x[i]);
      squares = fmaf(to_float(two.x), to_float(two.x), squares);
      squares = fmaf(to_float(two.y), to_float(two.y), squares);
    }
  }

  // y[j] = number * factor * weight of column perm[j], rounded once; a thread writes eight numbers at a time.
  __device__ __forceinline__ void write(act_t* y, const int* perm, float factor, int K) const {
    for (int j = 8 * threadIdx.x; j < K; j += 8 * THREADS) {
      float v[8];
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const Pair column = as_pair<Pair>(columns[perm[j + i]]);
        v[i] = to_float(column.x) * factor * to_float(column.y);
      }
      store_eight(y, j, K, v);
    }
  }
};
