// Dequantizes the eight codes of a word into operand A of mma: weight = (code - zero) * scale, rounded once to act_t.
//
// OR-ing a code into the low mantissa bits of a power of two adds it to that power, without a conversion instruction.
// Subtracting the power plus the zero point then leaves code - zero, exactly. The four pairs of a word are
//   a[0] column g, rows c, c+1     a[1] column g+8     a[2] column g, rows c+8, c+9     a[3] column g+8
// (codes_fragments.cuh): both numbers of a pair are of one column and share a scale, as pairs 0 and 2 do, and 1 and 3.
#pragma once
#include "../ptx/bits.cuh"
#include "number.cuh"

template <int DTYPE>
struct Dequantizer;

// float16 adds codes to 1024. The codes of pairs 1 and 3 lie four bits higher and give 1024 + 16 code; one fma
// multiplies that by 1/16 and subtracts 64 + zero.
template <>
struct Dequantizer<FLOAT16> {
  using Scale = u32;  // two float16, one for each number of a pair

  static __device__ __forceinline__ Scale scale(u32 pair) { return pair; }
  static __device__ __forceinline__ Scale scale(half both) { return as_u32(__half2half2(both)); }

  // The number to subtract from pair i (for 1 and 3 negated, to add); zeros has a zero point in each half.
  static __device__ __forceinline__ u32 offset(int i, u32 zeros) {
    return i % 2 ? zeros << 4 | 0xd400d400 : zeros | 0x64006400;  // -(64 + zero) or 1024 + zero
  }

  static __device__ __forceinline__ u32 weight(int i, u32 word, u32 offset, Scale scale) {
    const u32 shifted = i < 2 ? word : word >> 8;
    const half2 zero = as_pair<half2>(offset);
    half2 difference;
    if (i % 2 == 0) {
      difference = __hsub2(as_pair<half2>(lop3<AND_OR>(shifted, 0x000f000f, 0x64006400)), zero);
    } else {
      const half2 sixteenth = as_pair<half2>(0x2c002c00);
      difference = __hfma2(as_pair<half2>(lop3<AND_OR>(shifted, 0x00f000f0, 0x64006400)), sixteenth, zero);
    }
    return as_u32(__hmul2(difference, as_pair<half2>(scale)));
  }
};

// bfloat16 has 7 mantissa bits, room for one nibble: 128 + code. A float16 scale is split into two bfloat16 numbers, of
// which `low` has at most three significant bits: difference * low is exact, and the fma rounds the sum once.
template <>
struct Dequantizer<BFLOAT16> {
  struct Scale {
    u32 high, low;
  };

  static __device__ __forceinline__ Scale scale(u32 pair) {
    const float2 both = __half22float2(as_pair<half2>(pair));
    const __nv_bfloat162 high = __floats2bfloat162_rn(both.x, both.y);
    const __nv_bfloat162 low = __floats2bfloat162_rn(both.x - to_float(high.x), both.y - to_float(high.y));
    return {as_u32(high), as_u32(low)};
  }
  static __device__ __forceinline__ Scale scale(half both) {
    const float value = __half2float(both);
    const __nv_bfloat162 high = __floats2bfloat162_rn(value, value);
    const float rest = value - to_float(high.x);
    return {as_u32(high), as_u32(__floats2bfloat162_rn(rest, rest))};
  }

  static __device__ __forceinline__ u32 offset(int, u32 zeros) { return zeros | 0x43004300; }  // 128 + zero

  static __device__ __forceinline__ u32 weight(int i, u32 word, u32 offset, Scale scale) {
    using Pair = __nv_bfloat162;
    const Pair code = as_pair<Pair>(lop3<AND_OR>(word >> (4 * i), 0x000f000f, 0x43004300));
    const Pair difference = __hsub2(code, as_pair<Pair>(offset));
    const Pair small = __hmul2(difference, as_pair<Pair>(scale.low));
    return as_u32(__hfma2(difference, as_pair<Pair>(scale.high), small));
  }
};
