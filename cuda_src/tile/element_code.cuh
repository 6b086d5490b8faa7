// One element of a block codec: float32 to its code and back, as ref_codec.encode_elements and formats.values.
// ELEMENT_BITS with the sign, MANTISSA_BITS, ELEMENT_BIAS; LARGEST_CODE is the code of the largest magnitude,
// ELEMENT_LARGEST its float32 bits. Codes above LARGEST_CODE mean NaN.
#pragma once
#include "../target.cuh"

constexpr u32 FLOAT_EXPONENT = 0x7f800000u, FLOAT_MAGNITUDE = 0x7fffffffu;

// The code of a magnitude v >= 0, rounded to nearest even, saturated. Adding the binade times 2^(23 - M) makes float32 round to just the element's
// step; taken away again, it leaves the rounded number. That, by a power of two, has the code for its fields.
DEVICE u32 magnitude_code(float v) {
  constexpr u32 first_binade = u32(1 - ELEMENT_BIAS + 127) << 23;
  constexpr u32 step_of_float = u32(23 - MANTISSA_BITS + 127) << 23;                              // 2^(23 - M)
  constexpr u32 rebias = ELEMENT_BIAS > 0 ? u32(ELEMENT_BIAS) << 23 : 0x00400000u;                // 2^(bias - 127)
  const u32 magnitude = min(__float_as_uint(v), u32(ELEMENT_LARGEST));
  const float binade = __uint_as_float(max(magnitude & FLOAT_EXPONENT, first_binade));
  const float raised = fmaf(binade, __uint_as_float(step_of_float), __uint_as_float(magnitude));
  const float rounded = fmaf(-binade, __uint_as_float(step_of_float), raised);
  return __float_as_uint(__fmul_rn(rounded, __uint_as_float(rebias))) >> (23 - MANTISSA_BITS);
}

// The value of a code. Its fields, put where float32 has its own, are the value but for a power of two.
DEVICE float element_value(u32 code) {
  constexpr u32 magnitudes = (1u << (ELEMENT_BITS - 1)) - 1;
  const u32 magnitude = code & magnitudes, sign = code >> (ELEMENT_BITS - 1) << 31;
  if (LARGEST_CODE < int(magnitudes) && int(magnitude) > LARGEST_CODE) return __uint_as_float(0x7fc00000u);
  constexpr u32 rebias = u32(127 - ELEMENT_BIAS + 127) << 23;  // 2^(127 - bias)
  return __fmul_rn(__uint_as_float(sign | magnitude << (23 - MANTISSA_BITS)), __uint_as_float(rebias));
}
