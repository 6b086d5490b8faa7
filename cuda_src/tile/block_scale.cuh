// The scale of a codec block: from the largest magnitude to a scale code, and from the code to float32, as scale_codes
// in cutpq/codecs/formulas.py and scale_values in formats.py. Constants of a configuration:
//
//   SCALE_BITS, SCALE_MANTISSA_BITS (0 for powers of two), SCALE_BIAS   format of a scale
//   SCALE_SMALLEST, SCALE_LARGEST, SCALE_NAN                            scale codes
//   RULE                                                                how a scale is rounded
//   MAX_EXPONENT, ELEMENT_LARGEST                                       floor(log2) and bits of the largest element
//   CARRY_AT                                                            mantissa from which a power of two is rounded up
#pragma once
#include "../target.cuh"
#include "element_code.cuh"

constexpr int FLOOR = 0, EVEN = 1, RCEIL = 2;  // indices into RULES of cutpq/codecs/formats.py

// The value of a scale code. The smallest power of two, 2^-127, is a subnormal float32.
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

// The code of 2^(floor(log2 amax) - floor(log2 largest)), one higher where the rule rounds up. Adding 1 - CARRY_AT to
// the mantissa makes it carry into the exponent exactly then. A subnormal amax has the smallest scale, whatever it is,
// except where MAX_EXPONENT is 0: then [2^-127, 2^-126) may round up, so amax is doubled to give it a normal mantissa.
DEVICE int power_code(u32 amax) {
  const bool subnormal = MAX_EXPONENT == 0 && amax < 0x00800000u;
  const u32 carried = (subnormal ? 2 * amax : amax) + (0x00800000u - u32(CARRY_AT));
  return int(carried >> 23) - int(subnormal) - 127 - MAX_EXPONENT + SCALE_BIAS;
}

// The code of amax / largest: the float32 quotient rounded down, to nearest even or up to a scale with a mantissa.
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

// The scale code of a block, from the float32 bits of its largest magnitude; SCALE_NAN for NaN and Inf.
DEVICE u32 scale_code(u32 amax) {
  int code;
  if constexpr (SCALE_MANTISSA_BITS == 0) code = power_code(amax);
  else code = ratio_code(__uint_as_float(amax));
  code = min(max(code, SCALE_SMALLEST), SCALE_LARGEST);
  return u32(amax < FLOAT_EXPONENT ? code : SCALE_NAN);
}

// Divides the numbers of a block by its scale and converts them to what element_codes takes (tile/element_code.cuh).
struct Divisor {
  float number;

  __device__ __forceinline__ explicit Divisor(u32 code) {
    if constexpr (SCALE_MANTISSA_BITS == 0) {  // multiplying by the inverse of a power of two is exact and faster
      const u32 inverse = max(u32(127 + SCALE_BIAS - int(code)) << 23, 0x00400000u);  // 2^-127 is a subnormal float32
      number = __fmul_rn(__uint_as_float(inverse), unit());
    } else {
      number = scale_value(code);
    }
  }

  __device__ __forceinline__ float field(float v) const {
    v = CONVERTED ? v : fabsf(v);
    return SCALE_MANTISSA_BITS == 0 ? __fmul_rn(v, number) : __fmul_rn(__fdiv_rn(v, number), unit());
  }
  static __device__ __forceinline__ float unit() { return CONVERTED ? 1.0f : field_of_element(); }
};

// For scale codes up to ORDINARY_SCALE the product field * scale_of_fields(code) is exact and below 2^128: an element
// has at most 7 significant bits, a scale 11, and the last bit of the smallest product is 2^-143 (E5M2 times E8M0).
// There fmaf(field, X, sum) equals a multiplication followed by an addition. ROOM is the number of binades that the
// product needs above the scale.
constexpr int ROOM = MAX_EXPONENT + 1 > 15 - ELEMENT_BIAS ? MAX_EXPONENT + 1 : 15 - ELEMENT_BIAS;
constexpr bool IS_WIDE = SCALE_MANTISSA_BITS == 0 && 127 + SCALE_BIAS - ROOM < SCALE_LARGEST;
constexpr int ORDINARY_SCALE = IS_WIDE ? 127 + SCALE_BIAS - ROOM : SCALE_LARGEST;

DEVICE float scale_of_fields(u32 code) {
  if constexpr (SCALE_MANTISSA_BITS == 0) {
    const int exponent = int(code) - SCALE_BIAS + 15 - ELEMENT_BIAS + 127;
    return __uint_as_float(exponent > 0 ? u32(exponent) << 23 : 0x00400000u);
  } else {
    return __fmul_rn(scale_value(code), element_of_field());
  }
}
