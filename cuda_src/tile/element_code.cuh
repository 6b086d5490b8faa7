// Elements of a block codec, four at a time: float32 to codes and back, as ref_codec.encode_elements and
// formats.values. Codes stand left-aligned in the bytes of a word. ELEMENT_BITS with the sign, MANTISSA_BITS,
// ELEMENT_BIAS; LARGEST_CODE is the code of the largest magnitude, and codes above it mean NaN.
//
// Between the two stands float16, whose five bits of exponent no element exceeds: an element's fields, put where
// float16 has its own, are its value times 2^(ELEMENT_BIAS - 15), subnormal ones too. A `field` is such a number.
#pragma once
#include "../ptx/bits.cuh"

constexpr u32 FLOAT_EXPONENT = 0x7f800000u, FLOAT_MAGNITUDE = 0x7fffffffu;

constexpr int SURPLUS = 5 - (ELEMENT_BITS - 1 - MANTISSA_BITS);  // bits of exponent that float16 has more
constexpr int LANE = MANTISSA_BITS <= 2 ? 8 : 16;                  // the upper byte of a half has room for two
constexpr u32 MAGNITUDES = (1u << (ELEMENT_BITS - 1)) - 1;
constexpr u32 LARGEST_FIELD = 0x00010001u * u32(LARGEST_CODE << (10 - MANTISSA_BITS));  // a pair

// 2^(ELEMENT_BIAS - 15) and its inverse: an element times the first is its field.
DEVICE float field_of_element() { return __uint_as_float(u32(ELEMENT_BIAS - 15 + 127) << 23); }
DEVICE float element_of_field() { return __uint_as_float(u32(15 - ELEMENT_BIAS + 127) << 23); }

// The field next to v >= 0, by rounding to nearest even. Adding the binade times 2^(23 - M) makes float32 round to
// just the element's step; taken away again, it leaves the rounded number.
DEVICE float rounded_field(float v) {
  constexpr u32 first_binade = u32(-14 + 127) << 23;
  constexpr u32 steps_of_float = u32(23 - MANTISSA_BITS + 127) << 23;  // 2^(23 - M)
  const float binade = __uint_as_float(max(__float_as_uint(v) & FLOAT_EXPONENT, first_binade));
  const float raised = fmaf(binade, __uint_as_float(steps_of_float), v);
  return fmaf(-binade, __uint_as_float(steps_of_float), raised);
}

// The codes of fields of magnitudes v, saturated, with the signs of `signed_by`.
DEVICE u32 element_codes(const float* v, const float* signed_by) {
  u32 fields[2], signs[2];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const half2 pair = __floats2half2_rn(rounded_field(v[2 * i]), rounded_field(v[2 * i + 1]));  // exact
    fields[i] = as_u32(__hmin2(pair, as_pair<half2>(LARGEST_FIELD)));
    if (LANE == 16) fields[i] <<= SURPLUS;
    signs[i] = prmt(__float_as_uint(signed_by[2 * i]), __float_as_uint(signed_by[2 * i + 1]), 0x0073);
  }
  u32 codes = prmt(fields[0], fields[1], 0x7531);  // the upper bytes: of up to two bits of mantissa they have it all
  if (LANE == 8) codes <<= SURPLUS;
  return codes | (prmt(signs[0], signs[1], 0x5410) & 0x80808080u);
}

// Codes to fields, in lanes of LANE bits, in which they stand left-aligned: the sign stays where it is.
DEVICE u32 fields_of(u32 codes) {
  constexpr u32 ones = LANE == 8 ? 0x01010101u : 0x00010001u;
  constexpr u32 sign = ones << (LANE - 1), magnitude = ones * (MAGNITUDES << (LANE - ELEMENT_BITS - SURPLUS));
  return (codes & sign) | (codes >> SURPLUS & magnitude);
}

// The four fields of codes. What a byte has below its code does not matter.
DEVICE void element_fields(float* v, u32 codes) {
  if (LANE == 8) codes = fields_of(codes);  // the upper bytes of the fields
#pragma unroll
  for (int i = 0; i < 2; i++) {
    u32 pair = prmt(codes, 0, i ? 0x3424 : 0x1404);  // bytes 2i and 2i + 1, each the upper one of a half
    if (LANE == 16) pair = fields_of(pair);
    if (LARGEST_CODE < int(MAGNITUDES))
      pair |= __hgt2_mask(__habs2(as_pair<half2>(pair)), as_pair<half2>(LARGEST_FIELD));  // all ones are NaN
    const float2 both = __half22float2(as_pair<half2>(pair));
    v[2 * i] = both.x;
    v[2 * i + 1] = both.y;
  }
}
