// A function of one to three values, for all lanes; and the modifiers that wrap it.
#pragma once
#include "../machine/number.h"
#include "../machine/warp.h"
#include "decoder.h"

namespace softgpu {

using I = const Instruction&;

// The body for every lane l of the mask m.
#define EACH(...)                                                         \
  if (m == ALL) {                                                         \
    _Pragma("GCC ivdep") for (int l = 0; l < LANES; l++) { __VA_ARGS__; } \
  } else {                                                                \
    for (int l = 0; l < LANES; l++)                                       \
      if (m >> l & 1) { __VA_ARGS__; }                                    \
  }

template <class D, class A, auto F>
void op1(Warp& w, I i, u32 m) {
  D* d = w.at<D>(i.o[0]);
  const A* a = w.at<A>(i.o[1]);
  EACH(d[l] = F(a[l]))
}
template <class D, class A, class B, auto F>
void op2(Warp& w, I i, u32 m) {
  D* d = w.at<D>(i.o[0]);
  const A* a = w.at<A>(i.o[1]);
  const B* b = w.at<B>(i.o[2]);
  EACH(d[l] = F(a[l], b[l]))
}
template <class D, class A, class B, class C, auto F>
void op3(Warp& w, I i, u32 m) {
  D* d = w.at<D>(i.o[0]);
  const A* a = w.at<A>(i.o[1]);
  const B* b = w.at<B>(i.o[2]);
  const C* c = w.at<C>(i.o[3]);
  EACH(d[l] = F(a[l], b[l], c[l]))
}

#define UN(T, ...) op1<T, T, [](T a) -> T { return (__VA_ARGS__); }>
#define BIN(T, ...) op2<T, T, T, [](T a, T b) -> T { return (__VA_ARGS__); }>
#define TER(T, ...) op3<T, T, T, T, [](T a, T b, T c) -> T { return (__VA_ARGS__); }>

// The expression in the statement's integer type.
#define INTS(t, ...)                                           \
  (t == "u16" || t == "b16"   ? (Handler)BIN(u16, __VA_ARGS__) \
   : t == "s16"               ? (Handler)BIN(s16, __VA_ARGS__) \
   : t == "u32" || t == "b32" ? (Handler)BIN(u32, __VA_ARGS__) \
   : t == "s32"               ? (Handler)BIN(s32, __VA_ARGS__) \
   : t == "u64" || t == "b64" ? (Handler)BIN(u64, __VA_ARGS__) \
   : t == "s64"               ? (Handler)BIN(s64, __VA_ARGS__) \
                              : nullptr)
// In unsigned arithmetic for signed types too, since it wraps around.
#define WRAPPING(t, ...)                                                          \
  (t == "u16" || t == "s16" || t == "b16"   ? (Handler)BIN(u16, u16(__VA_ARGS__)) \
   : t == "u32" || t == "s32" || t == "b32" ? (Handler)BIN(u32, __VA_ARGS__)      \
   : t == "u64" || t == "s64" || t == "b64" ? (Handler)BIN(u64, __VA_ARGS__)      \
                                            : nullptr)

// A predicate is one bit a lane. o[0] the result, o[1] its complement (0: none), o[4] a predicate that setp combines
// with: a 1 and, 2 or, 3 xor, 0 none; b where it is negated.
inline void set_predicate(Warp& w, I i, u32 m, u32 r) {
  u32 q = ~r;
  if (i.a) {
    const u32 c = i.b ? ~*w.at<u32>(i.o[4]) : *w.at<u32>(i.o[4]);
    r = i.a == 1 ? r & c : i.a == 2 ? r | c : r ^ c;
    q = i.a == 1 ? q & c : i.a == 2 ? q | c : q ^ c;
  }
  u32& p = *w.at<u32>(i.o[0]);
  p = (p & ~m) | (r & m);
  if (!i.o[1]) return;
  u32& n = *w.at<u32>(i.o[1]);
  n = (n & ~m) | (q & m);
}

// Addresses of an access: o[15] the base, b its bytes.
inline void addresses(Warp& w, I i, u64* out) {
  if (i.b == 8) {
    const u64* a = w.at<u64>(i.o[15]);
    for (int l = 0; l < LANES; l++) out[l] = a[l] + i.offset;
  } else {
    const u32* a = w.at<u32>(i.o[15]);
    for (int l = 0; l < LANES; l++) out[l] = u64(a[l]) + i.offset;
  }
}

inline void nothing(Warp&, I, u32) {}

}  // namespace softgpu
