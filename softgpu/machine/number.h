// Conversions between number formats, with the roundings of the PTX ISA (".rn", ".rz", ".rm", ".rp").
#pragma once
#include <immintrin.h>

#include <bit>
#include <cfenv>
#include <cmath>

#include "../ptx/text.h"

namespace softgpu {

inline float half_to_float(u16 h) { return _cvtsh_ss(h); }
inline u16 float_to_half(float f) { return _cvtss_sh(f, _MM_FROUND_TO_NEAREST_INT); }
inline float bf16_to_float(u16 b) { return std::bit_cast<float>(u32(b) << 16); }
inline u16 float_to_bf16(float f) {
  u32 b = std::bit_cast<u32>(f);
  if ((b & 0x7fffffff) > 0x7f800000) return 0x7fff;  // NaN, as the device writes it
  return (b + 0x7fff + (b >> 16 & 1)) >> 16;
}
inline u16 float_to_half_n(float f) { return f != f ? 0x7fff : float_to_half(f); }

// d rounded to odd: a further rounding to fewer bits is then as exact as if d had not been rounded at all.
inline float odd_float(double d) {
  float f = float(d);
  if (double(f) == d || d != d) return f;
  u32 b = std::bit_cast<u32>(f);
  if (std::fabs(double(f)) > std::fabs(d)) b--;
  return std::bit_cast<float>(b | 1);
}
inline double odd_sum(double a, double b) {
  const double s = a + b;
  if (!std::isfinite(s)) return s;
  const double bb = s - a, e = (a - (s - bb)) + (b - bb);
  if (e == 0) return s;
  u64 bits = std::bit_cast<u64>(s);
  if (!(bits & 1)) bits += (e > 0) == (s > 0) ? 1 : -1;
  return std::bit_cast<double>(bits);
}

struct Half {
  static float up(u16 x) { return half_to_float(x); }
  static u16 down(float x) { return float_to_half_n(x); }
};
struct Bfloat {
  static float up(u16 x) { return bf16_to_float(x); }
  static u16 down(float x) { return float_to_bf16(x); }
};
template <class N>
u16 fma16(u16 a, u16 b, u16 c) {
  return N::down(odd_float(odd_sum(double(N::up(a)) * double(N::up(b)), N::up(c))));
}

inline float min_number(float a, float b) {
  if (a != a) return b;
  if (b != b) return a;
  if (a == b) return std::signbit(a) ? a : b;
  return a < b ? a : b;
}
inline float max_number(float a, float b) {
  if (a != a) return b;
  if (b != b) return a;
  if (a == b) return std::signbit(a) ? b : a;
  return a > b ? a : b;
}
inline double min_number(double a, double b) { return a != a ? b : b != b ? a : a == b ? (std::signbit(a) ? a : b) : a < b ? a : b; }
inline double max_number(double a, double b) { return a != a ? b : b != b ? a : a == b ? (std::signbit(a) ? b : a) : a > b ? a : b; }
inline float flush(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }
inline float saturate(float x) { return x > 0 ? (x < 1 ? x : 1) : 0.0f; }

// A float of E exponent and M mantissa bits without infinities (e4m3) or with (e5m2).
inline float from_fp8(u8 v, bool e4m3) {
  const int m = e4m3 ? 3 : 2, bias = e4m3 ? 7 : 15, e = (v & 127) >> m, f = v & ((1 << m) - 1);
  float x;
  if (e4m3 && (v & 127) == 127) x = NAN;
  else if (!e4m3 && e == 31) x = f ? NAN : INFINITY;
  else x = e ? std::ldexp(float((1 << m) + f), e - bias - m) : std::ldexp(float(f), 1 - bias - m);
  return v & 128 ? -x : x;
}
inline u8 to_fp8(float x, bool e4m3) {  // nearest even, saturating
  if (x != x) return 0x7f;
  const u8 sign = std::signbit(x) ? 128 : 0;
  const int m = e4m3 ? 3 : 2, bias = e4m3 ? 7 : 15;
  const float most = e4m3 ? 448 : 57344;
  double a = std::fabs(double(x));
  if (a >= most) return sign | (e4m3 ? 0x7e : 0x7b);
  int e = a > 0 ? std::max(std::ilogb(a), 1 - bias) : 1 - bias;
  double q = std::nearbyint(std::ldexp(a, m - e));
  if (q >= (2 << m)) q /= 2, e++;
  if (std::ldexp(q, e - m) > most) return sign | (e4m3 ? 0x7e : 0x7b);
  return sign | (q >= (1 << m) ? ((e + bias) << m | (int(q) - (1 << m))) : int(q));
}

// E2M1, the 4-bit float of 0, 0.5, 1, 1.5, 2, 3, 4, 6: nearest even, saturating; NaN becomes 6.
inline u8 to_fp4(float x) {
  static const float magnitudes[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  if (x != x) return 7;
  const float a = std::fabs(x);
  int code = 7;
  while (code && a < magnitudes[code]) code--;
  if (code < 7) {
    const float below = a - magnitudes[code], above = magnitudes[code + 1] - a;
    if (above < below || (above == below && code % 2)) code++;
  }
  return u8(code | (std::signbit(x) ? 8 : 0));
}

}  // namespace softgpu
