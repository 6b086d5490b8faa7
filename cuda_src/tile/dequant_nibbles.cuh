// Dequantizers of 4-bit codes (dequant_fragment.cuh): *codes has the eight codes of a tile, pair i in the nibbles i and
// i + 4.
#pragma once
#include "dequant_fragment.cuh"

// float16 adds codes to 1024. The codes of pairs 1 and 3 lie four bits higher and give 1024 + 16 code; one fma
// multiplies that by 1/16 and subtracts 64 + zero.
template <>
struct Dequantizer<4, FLOAT16> : PairOfScales {
  using Offset = u32;

  // The number to subtract from pair i (for 1 and 3 negated, to add); zeros has a zero point in each half.
  static __device__ __forceinline__ Offset offset(int i, u32 zeros) {
    return i % 2 ? zeros << 4 | 0xd400d400 : zeros | 0x64006400;  // -(64 + zero) or 1024 + zero
  }

  static __device__ __forceinline__ u32 weight(int i, const u32* codes, Offset offset, Scale scale) {
    const u32 shifted = i < 2 ? *codes : *codes >> 8;
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
struct Dequantizer<4, BFLOAT16> {
  using Offset = u32;
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

  static __device__ __forceinline__ Offset offset(int, u32 zeros) { return zeros | 0x43004300; }  // 128 + zero

  static __device__ __forceinline__ u32 weight(int i, const u32* codes, Offset offset, Scale scale) {
    using Pair = __nv_bfloat162;
    const Pair code = as_pair<Pair>(lop3<AND_OR>(*codes >> (4 * i), 0x000f000f, 0x43004300));
    const Pair difference = __hsub2(code, as_pair<Pair>(offset));
    const Pair small = __hmul2(difference, as_pair<Pair>(scale.low));
    return as_u32(__hfma2(difference, as_pair<Pair>(scale.high), small));
  }
};
