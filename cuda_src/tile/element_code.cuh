// Elements of a block codec: float32 to codes and back, four at a time, as encode_elements in cutpq/codecs/formulas.py
// and values in formats.py. Codes stand left-aligned in the bytes of a word. ELEMENT_BITS counts the sign; LARGEST_CODE
// is the code of the largest magnitude, and codes above it mean NaN.
//
// Conversions go through float16, whose exponent has at least as many bits as any element's. The sign, exponent and
// mantissa of an element, moved to where float16 has its own, are the number element * 2^(ELEMENT_BIAS - 15), subnormal
// elements included. A `field` is such a float16 number.
#pragma once
#include "../ptx/bits.cuh"
#include "../ptx/convert_small.cuh"

constexpr u32 FLOAT_EXPONENT = 0x7f800000u, FLOAT_MAGNITUDE = 0x7fffffffu;

constexpr int SURPLUS = 5 - (ELEMENT_BITS - 1 - MANTISSA_BITS);  // exponent bits of float16 minus those of an element
constexpr int LANE = MANTISSA_BITS <= 2 ? 8 : 16;  // bits per field: the upper byte of a float16 has 2 mantissa bits
constexpr u32 MAGNITUDES = (1u << (ELEMENT_BITS - 1)) - 1;
constexpr u32 LARGEST_FIELD = 0x00010001u * u32(LARGEST_CODE << (10 - MANTISSA_BITS));  // two of them

// Factors between an element and its field: 2^(ELEMENT_BIAS - 15) and the inverse.
DEVICE float field_of_element() { return __uint_as_float(u32(ELEMENT_BIAS - 15 + 127) << 23); }
DEVICE float element_of_field() { return __uint_as_float(u32(15 - ELEMENT_BIAS + 127) << 23); }

// Whether the device has an instruction that makes these codes; it then takes elements, with their signs, for fields.
constexpr bool IS_E4M3 = ELEMENT_BITS == 8 && MANTISSA_BITS == 3 && LARGEST_CODE == 126;
constexpr bool IS_E2M1 = ELEMENT_BITS == 4 && MANTISSA_BITS == 1 && LARGEST_CODE == 7;
constexpr bool CONVERTED = (HAS_FP8 && IS_E4M3) || (HAS_FP4 && IS_E2M1);

// v >= 0 rounded to the nearest field, ties to even. After adding 2^(23 - M) times the binade of v, the last bit of a
// float32 is the element's step, so that the addition rounds; subtracting it again is exact.
DEVICE float rounded_field(float v) {
  constexpr u32 first_binade = u32(-14 + 127) << 23;
  constexpr u32 steps_of_float = u32(23 - MANTISSA_BITS + 127) << 23;  // the float32 number 2^(23 - M)
  const float binade = __uint_as_float(max(__float_as_uint(v) & FLOAT_EXPONENT, first_binade));
  const float raised = fmaf(binade, __uint_as_float(steps_of_float), v);
  return fmaf(-binade, __uint_as_float(steps_of_float), raised);
}

// The codes of four magnitudes v, given as fields: rounded, saturated, and with the signs of `signed_by`. Where CONVERTED,
// v are elements that have these signs.
DEVICE u32 element_codes(const float* v, const float* signed_by) {
  if constexpr (CONVERTED && IS_E4M3) return e4m3_pair(v[0], v[1]) | e4m3_pair(v[2], v[3]) << 16;
  if constexpr (CONVERTED && IS_E2M1) return e2m1_bytes({v[0], v[1], v[2], v[3]}, {});
  u32 fields[2], signs[2];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const half2 pair = __floats2half2_rn(rounded_field(v[2 * i]), rounded_field(v[2 * i + 1]));  // exact
    fields[i] = as_u32(__hmin2(pair, as_pair<half2>(LARGEST_FIELD)));
    if (LANE == 16) fields[i] <<= SURPLUS;
    signs[i] = prmt(__float_as_uint(signed_by[2 * i]), __float_as_uint(signed_by[2 * i + 1]), 0x0073);
  }
  u32 codes = prmt(fields[0], fields[1], 0x7531);  // the upper bytes, which hold the whole code
  if (LANE == 8) codes <<= SURPLUS;
  return codes | (prmt(signs[0], signs[1], 0x5410) & 0x80808080u);
}

// Moves the exponent and mantissa of codes, left-aligned in LANE bits, to where a field has them. The sign stays.
DEVICE u32 fields_of(u32 codes) {
  constexpr u32 ones = LANE == 8 ? 0x01010101u : 0x00010001u;
  constexpr u32 sign = ones << (LANE - 1), magnitude = ones * (MAGNITUDES << (LANE - ELEMENT_BITS - SURPLUS));
  return (codes & sign) | (codes >> SURPLUS & magnitude);
}

// pairs = the fields of the four codes of a word, two to a half2. Bits of a byte below its code are ignored.
DEVICE void element_pairs(half2* pairs, u32 codes) {
  if (LANE == 8) codes = fields_of(codes);  // bytes are now the upper bytes of fields
#pragma unroll
  for (int i = 0; i < 2; i++) {
    u32 pair = prmt(codes, 0, i ? 0x3424 : 0x1404);  // bytes 2i and 2i + 1 become the upper bytes of two float16
    if (LANE == 16) pair = fields_of(pair);
    if (LARGEST_CODE < int(MAGNITUDES))
      pair |= __hgt2_mask(__habs2(as_pair<half2>(pair)), as_pair<half2>(LARGEST_FIELD));  // a mask of ones makes a NaN
    pairs[i] = as_pair<half2>(pair);
  }
}

// v = the same fields in float32.
DEVICE void element_fields(float* v, u32 codes) {
  half2 pairs[2];
  element_pairs(pairs, codes);
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const float2 both = __half22float2(pairs[i]);
    v[2 * i] = both.x;
    v[2 * i + 1] = both.y;
  }
}
