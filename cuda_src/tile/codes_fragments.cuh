// 4-bit codes in the order of mma fragments, in which gemm_w4a16 consumes them; cutpq/weights/pack.py writes it.
//
// `words` is (N / 64, K / 16, 32 lanes, 4) u32, where N and K are padded to multiples of 64. With g = lane /
// 4 and c = 2 (lane % 4), word t of a lane holds, of columns g and g + 8 of the t-th 16, rows c, c + 1, c + 8
// and c + 9:
//   nibble 0: column g, row c      1: column g + 8, row c      2: column g, row c + 8      3: column g + 8, row c + 8
// and nibbles 4 to 7 hold the same columns of the next row. Scales and zeros are (G, N / 64, 8, 8): the eight columns
// g, g + 8, ... g + 56 of every g are neighbours, so that a lane loads all of its own at once.
#pragma once
#include "../target.cuh"

// The codes of 32 rows of one column.
template <int BITS>
struct FragmentCodes {
  static_assert(BITS == 4, "this order is made of nibbles");
  u32 word[8];  // words of four lanes for rows 0 to 15, then for rows 16 to 31
  int shift;    // bit offset of this column's nibbles in a word

  __device__ __forceinline__ FragmentCodes(const u32* words, int block, int n, int, int padded_K) {
    const int g = n % 8, t = n / 16 % 4;
    shift = n / 8 % 2 * 4;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const size_t tile = (size_t)(n / 64) * (padded_K / 16) + block * 2 + i / 4;
      word[i] = words[(tile * 32 + 4 * g + i % 4) * 4 + t];
    }
  }

  __device__ __forceinline__ u32 at(int row) const {
    const int lane = row / 16 * 4 + row % 8 / 2, nibble = row % 2 * 4 + row % 16 / 8 * 2;
    return word[lane] >> shift >> (4 * nibble) & 15;
  }

  static __device__ __forceinline__ size_t scale_at(int group, int n, int padded_N) {
    return ((size_t)group * (padded_N / 64) + n / 64) * 64 + n % 8 * 8 + n / 8 % 8;
  }
};
