// 8-bit codes down each column, four rows in a word, lowest bits first, which is GPTQ's own order. Scales and zeros are
// row-major (G, N).
#pragma once
#include "../target.cuh"

// The codes of 32 rows of one column.
template <int BITS>
struct WordCodes {
  static_assert(BITS == 8, "this order is made of bytes");
  u32 word[8];

  // words is (K / 4, N); the codes are those of rows 32 * block ... 32 * block + 31.
  __device__ __forceinline__ WordCodes(const u32* words, int block, int n, int N, int) {
#pragma unroll
    for (int i = 0; i < 8; i++) word[i] = words[(size_t)(block * 8 + i) * N + n];
  }

  __device__ __forceinline__ u32 at(int row) const { return word[row / 4] >> (row % 4 * 8) & 255; }

  static __device__ __forceinline__ size_t scale_at(int group, int n, int N) { return (size_t)group * N + n; }
};
