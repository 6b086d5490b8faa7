// PTX ISA, "Integer Arithmetic Instructions".
#include <algorithm>

#include "lanes.h"

namespace softgpu {
namespace {

// mul.hi
template <class T>
T high(T a, T b) {
  if constexpr (sizeof(T) == 8) {
    if constexpr (std::is_signed_v<T>) return T((__int128)a * b >> 64);
    else return T((unsigned __int128)a * b >> 64);
  } else if constexpr (std::is_signed_v<T>) {
    return T(s64(a) * s64(b) >> 8 * sizeof(T));
  } else {
    return T(u64(a) * u64(b) >> 8 * sizeof(T));
  }
}

// div: the ISA leaves a division by zero open; the device gives all ones.
template <class T>
T quotient(T a, T b) {
  if (b == 0) return ~T(0);
  if constexpr (std::is_signed_v<T>)
    if (b == T(-1)) return T(std::make_unsigned_t<T>(0) - std::make_unsigned_t<T>(a));
  return a / b;
}
template <class T>
T remainder_of(T a, T b) {
  if (b == 0) return a;
  if constexpr (std::is_signed_v<T>)
    if (b == T(-1)) return 0;
  return a % b;
}

// bfe: past the top bit, and past `length`, signed types repeat the sign of the field.
template <class T>
T extract(T a, u32 position, u32 length) {
  using U = std::make_unsigned_t<T>;
  constexpr u32 bits = 8 * sizeof(T);
  position &= 255, length &= 255;
  const bool sign = std::is_signed_v<T> && length && (U(a) >> std::min(position + length - 1, bits - 1) & 1);
  const U shifted = position < bits ? U(a) >> position : 0;
  const u32 have = std::min(length, position < bits ? bits - position : 0);
  const U mask = have >= bits ? ~U(0) : (U(1) << have) - 1;
  return T((shifted & mask) | (sign ? ~mask : U(0)));
}
// bfi
template <class T>
T insert(T a, T b, u32 position, u32 length) {
  constexpr u32 bits = 8 * sizeof(T);
  position &= 255, length &= 255;
  if (position >= bits || length == 0) return b;
  const T mask = (length >= bits ? ~T(0) : (T(1) << length) - 1) << position;
  return (b & ~mask) | (a << position & mask);
}
template <class T>
void bfi_lanes(Warp& w, I i, u32 m) {
  T* d = w.at<T>(i.o[0]);
  const T *a = w.at<T>(i.o[1]), *b = w.at<T>(i.o[2]);
  const u32 *position = w.at<u32>(i.o[3]), *length = w.at<u32>(i.o[4]);
  EACH(d[l] = insert<T>(a[l], b[l], position[l], length[l]))
}

template <class T>
T reversed(T v) {
  T r = 0;
  for (u32 k = 0; k < 8 * sizeof(T); k++) r |= (v >> k & 1) << (8 * sizeof(T) - 1 - k);
  return r;
}

Handler add(Form& f) {
  if (f.has("cc") || f.is_float() || f.is_16_bit()) return nullptr;
  f.binary(f.bytes);
  const bool minus = f.op == "sub";
  if (!f.sat) return minus ? WRAPPING(f.type, a - b) : WRAPPING(f.type, a + b);
  if (f.type != "s32") return nullptr;
  return minus ? (Handler)BIN(s32, s32(std::clamp<s64>(s64(a) - b, INT32_MIN, INT32_MAX)))
               : (Handler)BIN(s32, s32(std::clamp<s64>(s64(a) + b, INT32_MIN, INT32_MAX)));
}

Handler mul_wide(Form& f) {
  f.binary(f.bytes);
  if (f.type == "u16") return op2<u32, u16, u16, [](u16 a, u16 b) { return u32(a) * b; }>;
  if (f.type == "s16") return op2<s32, s16, s16, [](s16 a, s16 b) { return s32(a) * b; }>;
  if (f.type == "u32") return op2<u64, u32, u32, [](u32 a, u32 b) { return u64(a) * b; }>;
  if (f.type == "s32") return op2<s64, s32, s32, [](s32 a, s32 b) { return s64(a) * b; }>;
  return nullptr;
}

Handler mul(Form& f) {
  if (f.is_float() || f.is_16_bit()) return nullptr;
  if (f.has("wide")) return mul_wide(f);
  f.binary(f.bytes);
  if (f.has("hi")) return INTS(f.type, high<decltype(a)>(a, b));
  return f.bytes == 2 ? (Handler)BIN(u16, u16(u32(a) * b)) : f.bytes == 4 ? (Handler)BIN(u32, a * b) : (Handler)BIN(u64, a * b);
}

Handler mad_wide(Form& f) {
  f.ternary(f.bytes);
  f.out.o[3] = f.source(3, 2 * f.bytes);
  if (f.type == "u16") return op3<u32, u16, u16, u32, [](u16 a, u16 b, u32 c) { return u32(a) * b + c; }>;
  if (f.type == "s16") return op3<u32, s16, s16, u32, [](s16 a, s16 b, u32 c) { return u32(s32(a) * b) + c; }>;
  if (f.type == "u32") return op3<u64, u32, u32, u64, [](u32 a, u32 b, u64 c) { return u64(a) * b + c; }>;
  if (f.type == "s32") return op3<u64, s32, s32, u64, [](s32 a, s32 b, u64 c) { return u64(s64(a) * b) + c; }>;
  return nullptr;
}

Handler mad(Form& f) {
  if (f.is_float() || f.is_16_bit() || f.has("cc") || f.sat) return nullptr;
  if (f.has("wide")) return mad_wide(f);
  f.ternary(f.bytes);
  if (f.has("hi")) {
    if (f.type == "u32") return TER(u32, high(a, b) + c);
    if (f.type == "s32") return TER(s32, s32(u32(high(a, b)) + u32(c)));
    if (f.type == "u64") return TER(u64, high(a, b) + c);
    if (f.type == "s64") return TER(s64, s64(u64(high(a, b)) + u64(c)));
    return nullptr;
  }
  return f.bytes == 2   ? (Handler)TER(u16, u16(u32(a) * b + c))
         : f.bytes == 4 ? (Handler)TER(u32, a * b + c)
                        : (Handler)TER(u64, a * b + c);
}

Handler mul24(Form& f) {
  if (!f.has("lo")) return nullptr;
  f.binary(4);
  return f.type == "u32" ? (Handler)BIN(u32, (a & 0xffffff) * (b & 0xffffff))
                         : (Handler)BIN(u32, u32(s32(a << 8) >> 8) * u32(s32(b << 8) >> 8));
}

Handler div(Form& f) {
  if (f.is_float()) return nullptr;
  f.binary(f.bytes);
  return INTS(f.type, quotient<decltype(a)>(a, b));
}
Handler rem(Form& f) {
  f.binary(f.bytes);
  return INTS(f.type, remainder_of<decltype(a)>(a, b));
}

Handler min_max(Form& f) {
  if (f.is_float() || f.is_16_bit() || f.relu) return nullptr;
  f.binary(f.bytes);
  return f.op == "min" ? INTS(f.type, a < b ? a : b) : INTS(f.type, a > b ? a : b);
}

Handler neg(Form& f) {
  if (f.is_float() || f.is_16_bit()) return nullptr;
  f.unary(f.bytes);
  return f.bytes == 2 ? (Handler)UN(u16, u16(-a)) : f.bytes == 4 ? (Handler)UN(u32, -a) : (Handler)UN(u64, -a);
}
Handler abs(Form& f) {
  if (f.is_float() || f.is_16_bit()) return nullptr;
  f.unary(f.bytes);
  return f.bytes == 2   ? (Handler)UN(u16, u16(s16(a) < 0 ? -a : a))
         : f.bytes == 4 ? (Handler)UN(u32, s32(a) < 0 ? -a : a)
                        : (Handler)UN(u64, s64(a) < 0 ? -a : a);
}

Handler sad(Form& f) {
  f.ternary(4);
  return f.type == "u32"   ? (Handler)TER(u32, (a > b ? a - b : b - a) + c)
         : f.type == "s32" ? (Handler)TER(s32, (a > b ? a - b : b - a) + c)
                           : nullptr;
}

#define COUNT(T, ...) op1<u32, T, [](T a) -> u32 { return (__VA_ARGS__); }>
Handler popc(Form& f) {
  f.unary(4, f.bytes);
  return f.bytes == 4 ? (Handler)COUNT(u32, __builtin_popcount(a)) : (Handler)COUNT(u64, __builtin_popcountll(a));
}
Handler clz(Form& f) {
  f.unary(4, f.bytes);
  return f.bytes == 4 ? (Handler)COUNT(u32, a ? __builtin_clz(a) : 32) : (Handler)COUNT(u64, a ? __builtin_clzll(a) : 64);
}
Handler bfind(Form& f) {
  f.unary(4, f.bytes);
  const bool shift = f.has("shiftamt");
  if (f.type == "u32") return shift ? (Handler)COUNT(u32, a ? __builtin_clz(a) : ALL) : (Handler)COUNT(u32, a ? 31 - __builtin_clz(a) : ALL);
  if (f.type == "u64") return shift ? (Handler)COUNT(u64, a ? __builtin_clzll(a) : ALL) : (Handler)COUNT(u64, a ? 63 - __builtin_clzll(a) : ALL);
  if (f.type == "s32" && !shift) return COUNT(s32, (a < 0 ? ~a : a) ? 31 - __builtin_clz(a < 0 ? ~a : a) : ALL);
  return nullptr;
}
Handler brev(Form& f) {
  f.unary(f.bytes);
  return f.bytes == 4 ? (Handler)UN(u32, reversed(a)) : (Handler)UN(u64, reversed(a));
}

#define FIELD(T) op3<T, T, u32, u32, [](T a, u32 b, u32 c) -> T { return extract<T>(a, b, c); }>
Handler bfe(Form& f) {
  f.unary(f.bytes);
  f.out.o[2] = f.source(2, 4), f.out.o[3] = f.source(3, 4);
  return f.type == "u32"   ? (Handler)FIELD(u32)
         : f.type == "s32" ? (Handler)FIELD(s32)
         : f.type == "u64" ? (Handler)FIELD(u64)
                           : (Handler)FIELD(s64);
}
Handler bfi(Form& f) {
  f.binary(f.bytes);
  f.out.o[3] = f.source(3, 4), f.out.o[4] = f.source(4, 4);
  return f.bytes == 4 ? (Handler)bfi_lanes<u32> : (Handler)bfi_lanes<u64>;
}
Handler bmsk(Form& f) {
  f.binary(4);
  return f.has("wrap") ? (Handler)BIN(u32, (b & 31 ? (1u << (b & 31)) - 1 : 0) << (a & 31))
                       : (Handler)BIN(u32, a > 31 ? 0 : (b > 31 ? ALL : (1u << b) - 1) << a);
}

Handler dp4a(Form& f) {
  f.ternary(4);
  if (f.part_from_end(2) != "s32" || f.type != "s32") return nullptr;
  return TER(u32, c + u32(s8(a) * s8(b) + s8(a >> 8) * s8(b >> 8) + s8(a >> 16) * s8(b >> 16) + s8(a >> 24) * s8(b >> 24)));
}

}  // namespace

const Family INTEGER = {{"add", add}, {"sub", add},   {"mul", mul},     {"mad", mad},   {"mul24", mul24}, {"div", div}, {"rem", rem},
                        {"abs", abs}, {"neg", neg},   {"min", min_max}, {"max", min_max}, {"sad", sad},   {"popc", popc}, {"clz", clz},
                        {"bfind", bfind}, {"brev", brev}, {"bfe", bfe}, {"bfi", bfi},   {"bmsk", bmsk}, {"dp4a", dp4a}};

}  // namespace softgpu
