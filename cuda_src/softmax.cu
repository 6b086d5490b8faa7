// softmax: attention scores to probabilities.   caller: cutpq/model/attention.py
//   p[row, j] = exp(scale * (s[row, j] - largest)) / sum   over the keys that the query attends to; 0 for all others
// There is a row for each query of each head. Column j is the key at position first_key + j; a query at position p
// attends to the keys p - window + 1 ... p. Padding queries have position -1 and rows of zeros. A block owns a row and
// reads it three times; the second and third time it is in L1. The sum is added in a fixed order: the same input gives
// the same bits.
#include "target.cuh"
#include "tile/block_max.cuh"
#include "tile/block_sum.cuh"
#include "tile/eight.cuh"

DEVICE float minus_infinity() { return __uint_as_float(0xff800000u); }

// The columns [begin, end) of a row that its query attends to.
struct Seen {
  int begin, end;

  // s = the scores of columns j ... j + 7, minus infinity outside of [begin, end).
  __device__ __forceinline__ void load(float* s, const float* row, int j) const {
    const float4 left = *reinterpret_cast<const float4*>(row + j);
    const float4 right = *reinterpret_cast<const float4*>(row + j + 4);
    const float eight[8] = {left.x, left.y, left.z, left.w, right.x, right.y, right.z, right.w};
#pragma unroll
    for (int i = 0; i < 8; i++) s[i] = begin <= j + i && j + i < end ? eight[i] : minus_infinity();
  }
};

extern "C" __global__ void __launch_bounds__(THREADS)
softmax(const float* __restrict__ scores,   // (pairs, rows, columns); a pair is a sequence and a key/value head
        const int* __restrict__ positions,  // (batch, T), each below first_key + columns
        act_t* __restrict__ probabilities,  // (pairs, rows, columns)
        int T,
        int first_pair,                     // number of the first pair among batch * kv_heads
        int kv_heads,
        int first_query,                    // index of the first query among T
        int rows,                           // rows of a pair: rep for each query
        int rep,                            // query heads that share a key/value head
        int first_key,
        int columns,                        // a multiple of 8
        int window,                         // keys that a query attends to, at most
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
