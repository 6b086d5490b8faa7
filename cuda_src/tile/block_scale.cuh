// The scale that a block shares: from its largest magnitude to a code, and from the code to float32, as
// ref_codec.scale_codes and formats.scale_values. SCALE_BITS, SCALE_MANTISSA_BITS (0: powers of two), SCALE_BIAS,
// SCALE_SMALLEST, SCALE_LARGEST, SCALE_NAN (codes); RULE; and of powers of two CARRY_AT, the 23 bits of a mantissa
// from which on the exponent is one higher.
#pragma once
#include "../target.cuh"
#include "element_code.cuh"

constexpr int FLOOR = 0, EVEN = 1, RCEIL = 2;  // as in cutpq/formats.py

// The value of a scale code. 2^-127 is a subnormal number.
DEVICE float scale_value(u32 code) {
  if (int(code) > SCALE_LARGEST) return __uint_as_float(0x7fc00000u);
  if constexpr (SCALE_MANTISSA_BITS == 0) {
    const int field = int(code) - SCALE_BIAS + 127;
    return __uint_as_float(field > 0 ? u32(field) << 23 : 0x00400000u);
  } else {
    constexpr u32 rebias = u32(127 - SCALE_BIAS + 127) << 23;
    return __fmul_rn(__uint_as_float(code << (23 - SCALE_MANTISSA_BITS)), __uint_as_float(rebias));
  }
}

// floor(log2 amax) - floor(log2 largest), and one more where the rule carries. Zero counts as the smallest number.
DEVICE int power_code(u32 amax) {
  const u32 bits = max(amax, 1u);
  const int shift = max(__clz(int(bits)) - 8, 0);  // brings a subnormal number to 1.m of the smallest normal binade
  const u32 shifted = bits << shift, mantissa = shifted & 0x7fffffu;
  const int exponent = int(shifted >> 23) - shift - 127;
  return exponent - MAX_EXPONENT + int(mantissa >= u32(CARRY_AT)) + SCALE_BIAS;
}

// amax / largest, a float32 quotient, rounded down, to nearest even or up.
DEVICE int ratio_code(float amax) {
  const float ratio = __fdiv_rn(amax, __uint_as_float(u32(ELEMENT_LARGEST)));
  constexpr int shift = 23 - SCALE_MANTISSA_BITS, smallest_field = 127 - SCALE_BIAS;
  const int in_normal = int(__float_as_uint(ratio) >> shift) - (smallest_field << SCALE_MANTISSA_BITS);
  constexpr u32 steps_of_one = u32(SCALE_BIAS - 1 + SCALE_MANTISSA_BITS + 127) << 23;
  const int in_subnormal = int(__fmul_rn(fminf(ratio, 1.0f), __uint_as_float(steps_of_one)));
  const bool normal = __float_as_uint(ratio) >> 23 > u32(smallest_field);
  const int below = min(normal ? in_normal : in_subnormal, SCALE_LARGEST - 1);
  const float to_lower = __fsub_rn(ratio, scale_value(below)), to_upper = __fsub_rn(scale_value(below + 1), ratio);
  if (RULE == EVEN) return below + int(to_upper < to_lower || (to_upper == to_lower && below % 2 == 1));
  if (RULE == RCEIL) return below + int(to_lower > 0);
  return below + int(to_upper <= 0);
}

// The scale code of a block by its largest magnitude, given by its bits; SCALE_NAN for NaN and Inf.
DEVICE u32 scale_code(u32 amax) {
  if (amax >= FLOAT_EXPONENT) return SCALE_NAN;
  int code;
  if constexpr (SCALE_MANTISSA_BITS == 0) code = power_code(amax);
  else code = ratio_code(__uint_as_float(amax));
  return u32(min(max(code, SCALE_SMALLEST), SCALE_LARGEST));
}

// v / scale_value(code), for every v of a block.
struct Divisor {
  float number;

  __device__ __forceinline__ explicit Divisor(u32 code) {
    if constexpr (SCALE_MANTISSA_BITS == 0) {  // times the inverse, a power of two: the same, and quicker
      const int field = 127 - (int(code) - SCALE_BIAS);
      number = __uint_as_float(field > 0 ? u32(field) << 23 : 0x00400000u);
    } else {
      number = scale_value(code);
    }
  }

  __device__ __forceinline__ float divide(float v) const {
    return SCALE_MANTISSA_BITS == 0 ? __fmul_rn(v, number) : __fdiv_rn(v, number);
  }
};
