// softmax: attention's scores to probabilities, a row for each query of each head.   caller: cutpq/model/attention.py
//   p[row, j] = exp(scale * (s[row, j] - largest)) / sum   over the keys that the query sees; 0 for all others
// Column j is the key at position first_key + j; a query at position p sees the keys p - window + 1 ... p. A query that
// does not exist has position -1, sees nothing, and its row is zero. A block owns a row and reads it three times, of
// which the last two find it in L1. Sums are taken in a fixed order: the same input gives the same bits.
#include "target.cuh"
#include "tile/block_max.cuh"
#include "tile/block_sum.cuh"
#include "tile/eight.cuh"

DEVICE float minus_infinity() { return __uint_as_float(0xff800000u); }

// The columns [begin, end) of a row that its query sees.
struct Seen {
  int begin, end;

  // Eight scores from column j on, minus infinity where they are not seen.
  __device__ __forceinline__ void load(float* s, const float* row, int j) const {
    const float4 left = *reinterpret_cast<const float4*>(row + j);
    const float4 right = *reinterpret_cast<const float4*>(row + j + 4);
    const float eight[8] = {left.x, left.y, left.z, left.w, right.x, right.y, right.z, right.w};
#pragma unroll
    for (int i = 0; i < 8; i++) s[i] = begin <= j + i && j + i < end ? eight[i] : minus_infinity();
  }
};

extern "C" __global__ void __launch_bounds__(THREADS)
softmax(const float* __restrict__ scores,   // (pairs, rows, columns), of pairs of a sequence and a key/value head
        const int* __restrict__ positions,  // (batch, T), each below first_key + columns
        act_t* __restrict__ probabilities,  // as scores
        int T,
        int first_pair,                     // of batch * kv_heads
        int kv_heads,
        int first_query,                    // of T
        int rows,                           // of a pair: rep for each query
        int rep,                            // query heads of each key/value head
        int first_key,
        int columns,                        // a multiple of 8
        int window,                         // keys that a query sees
        float scale) {                      // above 0
  DYNAMIC_SHARED(smem);
  Carver carver(smem);
  float* smem_largest = carver.take<float>(THREADS / 32);
  float* smem_sums = carver.take<float>(THREADS / 32);

  const int sequence = (first_pair + int(blockIdx.x) / rows) / kv_heads;
  const int position = positions[sequence * T + first_query + int(blockIdx.x) % rows / rep];
  const Seen seen = {max(0, position - window + 1 - first_key), max(0, position + 1 - first_key)};
  const float* row = scores + size_t(blockIdx.x) * columns;

  float s[8];
  float largest = minus_infinity(), sum = 0;
  for (int j = seen.begin / 8 * 8 + 8 * threadIdx.x; j < seen.end; j += 8 * THREADS) {
    seen.load(s, row, j);
#pragma unroll
    for (int i = 0; i < 8; i++) largest = fmaxf(largest, s[i]);
  }
  largest = block_max(smem_largest, largest);
  for (int j = seen.begin / 8 * 8 + 8 * threadIdx.x; j < seen.end; j += 8 * THREADS) {
    seen.load(s, row, j);
#pragma unroll
    for (int i = 0; i < 8; i++) sum += expf(scale * (s[i] - largest));
  }
  const float factor = 1.0f / block_sum(smem_sums, sum);
  for (int j = 8 * threadIdx.x; j < columns; j += 8 * THREADS) {
    const bool any = seen.begin < j + 8 && j < seen.end;
    if (any) seen.load(s, row, j);
#pragma unroll
    for (int i = 0; i < 8; i++) s[i] = any ? expf(scale * (s[i] - largest)) * factor : 0.0f;
    store_eight(probabilities + size_t(blockIdx.x) * columns, j, columns, s);
  }
}
