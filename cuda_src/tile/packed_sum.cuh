// The sum of the same codec block from several ranks, two numbers at a time in half2, where that is exact: a third of
// the instructions of a sum in float32, and the same bits.
//
// An element of few bits is a small whole number of steps, E2M1's at most 12. If the ranks' scales, powers of two, are
// at most SPREAD binades apart, all terms and their partial sums are whole numbers of up to 2048 steps of the lowest
// scale. Float16 has each of these, and float32, too, so that neither rounds.
#pragma once
#include "block_scale.cuh"

template <int COUNT>
struct PackedSum {
  // The largest element in steps: its mantissa with the leading one, shifted by its exponent.
  static constexpr int ONE = 1 << MANTISSA_BITS, EXPONENT = LARGEST_CODE / ONE;
  static constexpr u64 STEPS = u64(ONE + LARGEST_CODE % ONE) << (EXPONENT > 0 ? EXPONENT - 1 : 0);

  // The most binades at which the sum stays within 2048 steps. Fewer than three would seldom do.
  static constexpr int OFTEN = int(2048 / STEPS) / COUNT;  // how often COUNT of the largest element fit in
  static constexpr int SPREAD = OFTEN >= 64 ? 6 : OFTEN >= 32 ? 5 : OFTEN >= 16 ? 4 : OFTEN >= 8 ? 3 : 0;

  static constexpr bool POSSIBLE = COUNT > 1 && SCALE_MANTISSA_BITS == 0 && SPREAD > 0;

  static __device__ __forceinline__ bool is_exact(u32 lowest, u32 highest) { return highest - lowest <= SPREAD; }

  u32 factor_of_zero;  // two float16, the factor of scale code 0: its exponent is below zero and wraps around
  float unit;          // what 1 in a sum stands for

  // Fields are multiplied by 2^(15 - SPREAD) for the lowest scale and by up to 2^15 for others: normal numbers.
  __device__ __forceinline__ explicit PackedSum(u32 lowest) {
    factor_of_zero = (15 + 15 - SPREAD - lowest) * 0x04000400u;
    unit = __fmul_rn(scale_of_fields(lowest), __uint_as_float(u32(SPREAD - 15 + 127) << 23));
  }

  // Two pairs += the fields of a word of codes times the scale's factor; for the first term, without the sum so far.
  __device__ __forceinline__ void add(half2* pairs, u32 codes, u32 scale, bool first) const {
    const half2 factor = as_pair<half2>(scale * 0x04000400u + factor_of_zero);
    half2 fields[2];
    element_pairs(fields, codes);
#pragma unroll
    for (int i = 0; i < 2; i++) pairs[i] = first ? __hmul2(fields[i], factor) : __hfma2(fields[i], factor, pairs[i]);
  }

  // v += the sums, exact in float32 where the terms are; v = the sums if they are the first.
  __device__ __forceinline__ void add_to(float (&v)[4], const half2* pairs, bool first) const {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const float2 both = __half22float2(pairs[i]);
      v[2 * i] = first ? __fmul_rn(both.x, unit) : fmaf(both.x, unit, v[2 * i]);
      v[2 * i + 1] = first ? __fmul_rn(both.y, unit) : fmaf(both.y, unit, v[2 * i + 1]);
    }
  }
};

// The scales of a block from COUNT ranks, four neighbouring ranks at a time: under act-order ranks hold groups in the
// order of their importance, so that scales fall from the first rank to the last, but by little from one to the next.
// Sums of four ranks are exact in half2, and the sums of these in float32: four terms are at most 2^8 steps of their own
// scales (SPREAD is at least 3), 2^18 of a scale WHOLE binades below, and 64 such groups 2^24.
template <int COUNT>
struct ScalesOfRanks {
  static constexpr int SIZE = COUNT < 4 ? COUNT : 4, GROUPS = (COUNT + SIZE - 1) / SIZE, WHOLE = 10;
  static constexpr bool PACKED = PackedSum<SIZE>::POSSIBLE && GROUPS <= 64;

  u32 lowest_of[GROUPS], highest_of[GROUPS], lowest, highest;

  template <class Raw>
  __device__ __forceinline__ explicit ScalesOfRanks(const Raw (&terms)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      u32 &low = lowest_of[i / SIZE], &high = highest_of[i / SIZE];
      low = i % SIZE ? min(low, terms[i].scale) : terms[i].scale;
      high = i % SIZE ? max(high, terms[i].scale) : terms[i].scale;
    }
    lowest = lowest_of[0], highest = highest_of[0];
#pragma unroll
    for (int group = 1; group < GROUPS; group++) {
      lowest = min(lowest, lowest_of[group]);
      highest = max(highest, highest_of[group]);
    }
  }

  __device__ __forceinline__ bool sum_is_exact() const {
    bool exact = highest - lowest <= WHOLE;
#pragma unroll
    for (int group = 0; group < GROUPS; group++)
      exact = exact && PackedSum<SIZE>::is_exact(lowest_of[group], highest_of[group]);
    return exact;
  }
};
