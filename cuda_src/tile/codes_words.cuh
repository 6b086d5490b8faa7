// Codes as a stream of bits down each column, lowest first: 32 rows take BITS words, and 3-bit codes cross
// words. This is GPTQ's own order. Scales and zeros are plain (G, N).
#pragma once
#include "../target.cuh"

// The codes of 32 rows of one column.
template <int BITS>
struct WordCodes {
  u32 stream[BITS + 1];

  // words (K / 32 * BITS, N); rows 32 * block ...
  __device__ __forceinline__ WordCodes(const u32* words, int block, int n, int N, int) {
#pragma unroll
    for (int i = 0; i < BITS; i++) stream[i] = words[(size_t)(block * BITS + i) * N + n];
    stream[BITS] = 0;  // never shown: the last code ends with the last word
  }

  __device__ __forceinline__ u32 at(int row) const {
    const int bit = row * BITS, word = bit / 32, shift = bit % 32;
    u32 code = stream[word] >> shift;
    if (shift + BITS > 32) code |= stream[word + 1] << (32 - shift);
    return code & ((1u << BITS) - 1);
  }

  static __device__ __forceinline__ size_t scale_at(int group, int n, int N) { return (size_t)group * N + n; }
};
