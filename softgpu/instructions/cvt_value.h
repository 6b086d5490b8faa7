// cvt of one value, by the letter of the PTX ISA: for every pair of types, rounding and modifier.
#pragma once
#include <limits>

#include "../machine/number.h"

namespace softgpu {

enum Type : u8 { U8, U16, U32, U64, S8, S16, S32, S64, F16, BF16, F32, F64 };  // integers first
enum Rounding : u8 { NONE, RNI, RZI, RMI, RPI, RN, RZ, RM, RP };               // ...I: to an integer

struct Conversion {
  Type to, from;
  Rounding rounding;
  bool ftz, sat, relu;
};

inline double round_to_integer(double x, Rounding r) {
  return r == RNI ? std::nearbyint(x) : r == RMI ? std::floor(x) : r == RPI ? std::ceil(x) : std::trunc(x);
}
inline bool towards_minus(double x, Rounding r) { return r == RM || (r == RZ && x > 0); }
inline bool towards_plus(double x, Rounding r) { return r == RP || (r == RZ && x < 0); }

inline float to_float32(double x, Rounding r) {
  const float f = float(x);
  if (r == RN || r == NONE || x != x || double(f) == x) return f;
  if (std::isinf(f) && !std::isinf(x)) {
    const bool stays = (towards_minus(x, r) && f > 0) || (towards_plus(x, r) && f < 0);
    return stays ? std::copysign(std::numeric_limits<float>::max(), f) : f;
  }
  if (towards_minus(x, r) && double(f) > x) return std::nextafterf(f, -INFINITY);
  if (towards_plus(x, r) && double(f) < x) return std::nextafterf(f, INFINITY);
  return f;
}

template <class N>
u16 to_16_bits(double x, Rounding r) {
  const u16 h = N::down(odd_float(x));
  if (r == RN || r == NONE || x != x || std::isinf(x)) return h;
  const double v = N::up(h);
  const bool negative = h >> 15;
  if (towards_minus(x, r) && v > x) return negative ? h + 1 : (h & 0x7fff) ? h - 1 : 0x8001;
  if (towards_plus(x, r) && v < x) return !negative ? h + 1 : (h & 0x7fff) ? h - 1 : 0x0001;
  return h;
}

// Floats beyond an integer's range give its limit; NaN gives zero, or the top bit where 64 bits take part.
template <class T>
T to_integer(double x, u64 of_nan) {
  if (x != x) return T(of_nan);
  if (x >= double(std::numeric_limits<T>::max())) return std::numeric_limits<T>::max();
  if (x <= double(std::numeric_limits<T>::min())) return std::numeric_limits<T>::min();
  return T(x);
}
inline u64 integer_from_float(double x, const Conversion& c) {
  x = round_to_integer(x, c.rounding);
  const bool wide = c.from == F64 || c.to == S64 || c.to == U64;
  const u64 nan32 = wide ? 0x80000000u : 0, nan64 = wide ? 1ull << 63 : 0;
  switch (c.to) {
    case U8: return to_integer<u8>(x, 0);
    case U16: return to_integer<u16>(x, 0);
    case U32: return to_integer<u32>(x, nan32);
    case U64: return to_integer<u64>(x, nan64);
    case S8: return s64(to_integer<s8>(x, 0));
    case S16: return s64(to_integer<s16>(x, 0));
    case S32: return u32(to_integer<s32>(x, nan32));
    default: return to_integer<s64>(x, nan64);
  }
}

inline s64 integer_of_register(u64 raw, Type type) {
  switch (type) {
    case U8: return u8(raw);
    case U16: return u16(raw);
    case U32: return u32(raw);
    case S8: return s8(raw);
    case S16: return s16(raw);
    case S32: return s32(raw);
    default: return s64(raw);
  }
}
inline s64 saturated(s64 v, bool is_unsigned, Type to) {  // .sat
  const bool to_signed = to >= S8;
  const int bits = 8 << (to_signed ? to - S8 : to - U8);
  const u64 most = ~0ull >> (64 - bits + to_signed);
  const s64 least = to_signed ? -s64(most) - 1 : 0;
  if (is_unsigned) return s64(std::min(u64(v), most));
  if (v < least) return least;
  return v > 0 && u64(v) > most ? s64(most) : v;
}

// A host rounds an integer to a float once, under any of the modes.
inline u64 float_from_integer(s64 v, const Conversion& c) {
  static const int modes[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD};
  const int before = std::fegetround();
  if (c.rounding >= RN) std::fesetround(modes[c.rounding - RN]);
  volatile s64 from = v;
  volatile float f = c.from == U64 ? float(u64(from)) : float(from);
  volatile double d = c.from == U64 ? double(u64(from)) : double(from);
  std::fesetround(before);
  if (c.to == F32) return std::bit_cast<u32>(float(f));
  if (c.to == F64) return std::bit_cast<u64>(double(d));
  return c.to == F16 ? to_16_bits<Half>(d, c.rounding) : to_16_bits<Bfloat>(d, c.rounding);
}

inline u64 float_from_float(double x, const Conversion& c) {
  if (c.rounding >= RNI && c.rounding <= RPI) x = round_to_integer(x, c.rounding);
  if (c.sat) x = x > 0 ? (x < 1 ? x : 1) : 0;
  if (c.relu && (x < 0 || (x == 0 && std::signbit(x)))) x = 0;
  if (c.to == F16) return to_16_bits<Half>(x, c.rounding);
  if (c.to == BF16) return to_16_bits<Bfloat>(x, c.rounding);
  if (c.to == F64) return std::bit_cast<u64>(x);
  if (x != x) return 0x7fffffffu;
  const float f = to_float32(x, c.rounding);
  return std::bit_cast<u32>(c.ftz ? flush(f) : f);
}

// Registers in and out by their bits.
inline u64 convert(const Conversion& c, u64 raw) {
  if (c.from < F16) {
    const s64 v = integer_of_register(raw, c.from);
    if (c.to >= F16) return float_from_integer(v, c);
    return u64(integer_of_register(u64(c.sat ? saturated(v, c.from < S8, c.to) : v), c.to));
  }
  double x = c.from == F16    ? half_to_float(u16(raw))
             : c.from == BF16 ? bf16_to_float(u16(raw))
             : c.from == F32  ? std::bit_cast<float>(u32(raw))
                              : std::bit_cast<double>(raw);
  if (c.ftz && c.from == F32) x = flush(float(x));
  return c.to < F16 ? integer_from_float(x, c) : float_from_float(x, c);
}

}  // namespace softgpu
