// Codes of 4 or 8 bits in the order of mma fragments, in which gemm_w4a16 consumes them; cutpq/weights/pack.py writes it.
//
// `words` is (N / 64, K / 16, BITS / 4, 32 lanes, 4) u32, where N and K are padded to multiples of 64. With g = lane / 4
// and c = 2 (lane % 4), a lane holds, of columns g and g + 8 of each 16, rows c, c + 1, c + 8 and c + 9.
//
// 4 bits: word t of a lane is the t-th 16 columns,
//   nibble 0: column g, row c      1: column g + 8, row c      2: column g, row c + 8      3: column g + 8, row c + 8
// and nibbles 4 to 7 hold the same columns of the next row.
// 8 bits: words 2t and 2t + 1 of a lane are columns g and g + 8 of the t-th 16, and their bytes are the four rows. Words
// 0 to 3 of all lanes come first, and then words 4 to 7.
//
// Scales and zeros are (G, N / 64, 8, 8): the eight columns g, g + 8, ... g + 56 of every g are neighbours, so that a
// lane loads all of its own at once.
#pragma once
#include "../target.cuh"

// The codes of 32 rows of one column.
template <int BITS>
struct FragmentCodes {
  static_assert(BITS == 4 || BITS == 8, "these orders are made of nibbles and of bytes");
  u32 word[8];  // words of four lanes for rows 0 to 15, then for rows 16 to 31
  int shift;    // bit offset of this column's codes in a word

  __device__ __forceinline__ FragmentCodes(const u32* words, int block, int n, int padded_K) {
    const int g = n % 8, half = n / 8 % 2, t = n / 16 % 4;
    const int number = BITS == 4 ? t : 2 * t + half;  // of the word among those of a lane
    shift = BITS == 4 ? half * 4 : 0;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const size_t tile = (size_t)(n / 64) * (padded_K / 16) + block * 2 + i / 4;
      word[i] = words[((tile * (BITS / 4) + number / 4) * 32 + 4 * g + i % 4) * 4 + number % 4];
    }
  }

  __device__ __forceinline__ u32 at(int row) const {
    const int lane = row / 16 * 4 + row % 8 / 2, next = row % 2, eight_below = row % 16 / 8;
    const int bit = BITS == 4 ? next * 16 + eight_below * 8 : next * 8 + eight_below * 16;
    return word[lane] >> shift >> bit & ((1u << BITS) - 1);
  }

  static __device__ __forceinline__ size_t scale_at(int group, int n, int padded_N) {
    return ((size_t)group * (padded_N / 64) + n / 64) * 64 + n % 8 * 8 + n / 8 % 8;
  }
};
