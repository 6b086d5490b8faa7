// Dequantizers of 8-bit codes (dequant_fragment.cuh). codes[0] has column g, codes[1] column g + 8; their bytes are
// rows c, c + 1, c + 8 and c + 9.
#pragma once
#include "dequant_fragment.cuh"

// float16 adds codes to 1024: a byte fits below its 10 mantissa bits, and one prmt makes a pair.
template <>
struct Dequantizer<8, FLOAT16> : PairOfScales {
  using Offset = u32;

  static __device__ __forceinline__ Offset offset(int, u32 zeros) { return zeros | 0x64006400; }  // 1024 + zero

  static __device__ __forceinline__ u32 weight(int i, const u32* codes, Offset offset, Scale scale) {
    const u32 code = prmt(codes[i % 2], 0x64646464, i < 2 ? 0x4140 : 0x4342);
    const half2 difference = __hsub2(as_pair<half2>(code), as_pair<half2>(offset));
    return as_u32(__hmul2(difference, as_pair<half2>(scale)));
  }
};

// bfloat16 has 7 mantissa bits, too few for a byte beside a power of two, and a product of 8 by 11 bits does not split
// into two that it holds exactly. float32 adds codes to 2^23; difference and product are exact in it, and the
// conversion rounds once.
template <>
struct Dequantizer<8, BFLOAT16> {
  struct Scale {
    float first, second;  // of the two rows of a pair
  };
  using Offset = Scale;

  static __device__ __forceinline__ Scale scale(u32 pair) {
    const float2 both = __half22float2(as_pair<half2>(pair));
    return {both.x, both.y};
  }
  static __device__ __forceinline__ Scale scale(half both) {
    const float value = __half2float(both);
    return {value, value};
  }

  static __device__ __forceinline__ Offset offset(int, u32 zeros) {  // 2^23 + zero
    return {__uint_as_float(zeros & 0xffff | 0x4b000000), __uint_as_float(zeros >> 16 | 0x4b000000)};
  }

  static __device__ __forceinline__ u32 weight(int i, const u32* codes, Offset offset, Scale scale) {
    const u32 word = codes[i % 2], first_byte = i / 2 * 2;
    const float first = added_to_2_23(word, first_byte) - offset.first;
    const float second = added_to_2_23(word, first_byte + 1) - offset.second;
    return as_u32(Number<BFLOAT16>::pair(first * scale.first, second * scale.second));
  }

  static __device__ __forceinline__ float added_to_2_23(u32 word, u32 byte) {
    return __uint_as_float(prmt(word, 0x4b000000, 0x7440 + byte));
  }
};
