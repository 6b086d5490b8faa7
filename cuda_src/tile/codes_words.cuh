// Codes as a bit stream down each column, lowest bits first, which is GPTQ's own order: 32 rows take BITS words, and
// 3-bit codes cross word boundaries. Scales and zeros are row-major (G, N).
#pragma once
#include "../target.cuh"

// The codes of 32 rows of one column.
template <int BITS>
struct WordCodes {
  u32 stream[BITS + 1];

  // words is (K / 32 * BITS, N); the codes are those of rows 32 * block ... 32 * block + 31.
  __device__ __forceinline__ WordCodes(const u32* words, int block, int n, int N, int) {
#pragma unroll
    for (int i = 0; i < BITS; i++) stream[i] = words[(size_t)(block * BITS + i) * N + n];
    stream[BITS] = 0;  // padding for at(), never part of a code: the last code ends with the last word
  }

  __device__ __forceinline__ u32 at(int row) const {
    const int bit = row * BITS, word = bit / 32, shift = bit % 32;
    u32 code = stream[word] >> shift;
    if (shift + BITS > 32) code |= stream[word + 1] << (32 - shift);
    return code & ((1u << BITS) - 1);
  }

  static __device__ __forceinline__ size_t scale_at(int group, int n, int N) { return (size_t)group * N + n; }
};
