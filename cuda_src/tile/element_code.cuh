// One element of a block codec: float32 to its code and back, as ref_codec.encode_elements and formats.values.
// ELEMENT_BITS with the sign, MANTISSA_BITS, ELEMENT_BIAS; LARGEST_CODE is the code of the largest magnitude,
// ELEMENT_LARGEST its float32 bits. Codes above LARGEST_CODE mean NaN.
#pragma once
#include "../target.cuh"

constexpr u32 FLOAT_EXPONENT = 0x7f800000u, FLOAT_MAGNITUDE = 0x7fffffffu;

// v rounded to nearest even, saturated. Adding `magic` makes float32 round to just the element's step, and
// leaves the count of steps in the low bits of the sum; each binade above the first adds 2^MANTISSA_BITS.
DEVICE u32 element_code(float v) {
  constexpr u32 first_binade = u32(1 - ELEMENT_BIAS + 127) << 23;
  const u32 bits = __float_as_uint(v);
  const u32 magnitude = min(bits & FLOAT_MAGNITUDE, u32(ELEMENT_LARGEST));
  const u32 binade = max(magnitude & FLOAT_EXPONENT, first_binade);
  const u32 magic = binade + (u32(23 - MANTISSA_BITS) << 23);
  const u32 steps = __float_as_uint(__fadd_rn(__uint_as_float(magnitude), __uint_as_float(magic))) - magic;
  const u32 sign = bits >> 31 << (ELEMENT_BITS - 1);
  return sign | (steps + ((binade - first_binade) >> (23 - MANTISSA_BITS)));
}

// The value of a code. Its fields, put where float32 has its own, are the value but for a power of two.
DEVICE float element_value(u32 code) {
  constexpr u32 magnitudes = (1u << (ELEMENT_BITS - 1)) - 1;
  const u32 magnitude = code & magnitudes, sign = code >> (ELEMENT_BITS - 1) << 31;
  if (LARGEST_CODE < int(magnitudes) && int(magnitude) > LARGEST_CODE) return __uint_as_float(0x7fc00000u);
  constexpr u32 rebias = u32(127 - ELEMENT_BIAS + 127) << 23;  // 2^(127 - bias)
  return __fmul_rn(__uint_as_float(sign | magnitude << (23 - MANTISSA_BITS)), __uint_as_float(rebias));
}
