// PTX ISA, "Half Precision Floating Point Instructions": float16 and bfloat16, alone and in pairs, rounded once.
#include "lanes.h"

namespace softgpu {
namespace {

#define SINGLES(N, ...) \
  op2<u16, u16, u16, [](u16 p, u16 q) -> u16 { const float a = N::up(p), b = N::up(q); return N::down(__VA_ARGS__); }>
#define PAIRS(N, ...)                                                                                            \
  op2<u32, u32, u32, [](u32 x, u32 y) -> u32 {                                                                   \
    auto one = [](u16 p, u16 q) -> u16 { const float a = N::up(p), b = N::up(q); return N::down(__VA_ARGS__); }; \
    return u32(one(x >> 16, y >> 16)) << 16 | one(x, y);                                                         \
  }>
#define SIXTEEN(t, ...)                                   \
  (t == "f16"      ? (Handler)SINGLES(Half, __VA_ARGS__)   \
   : t == "bf16"   ? (Handler)SINGLES(Bfloat, __VA_ARGS__) \
   : t == "f16x2"  ? (Handler)PAIRS(Half, __VA_ARGS__)     \
   : t == "bf16x2" ? (Handler)PAIRS(Bfloat, __VA_ARGS__)   \
                   : nullptr)

// A float32 holds the exact product of two numbers of 16 bits; a sum is rounded to odd there, so that it rounds once.
template <auto CHOICE>
Handler binary(Form& f) {
  if (!f.is_16_bit() || f.sat || f.relu) return nullptr;
  f.binary(f.bytes);
  return CHOICE(f);
}
float exact_sum(float a, float b) { return odd_float(odd_sum(a, b)); }

template <class N>
u32 fma_pair(u32 a, u32 b, u32 c) {
  return u32(fma16<N>(a >> 16, b >> 16, c >> 16)) << 16 | fma16<N>(a, b, c);
}
Handler fma(Form& f) {
  if (!f.is_16_bit() || f.sat || f.relu) return nullptr;
  f.ternary(f.bytes);
  return f.type == "f16"     ? (Handler)TER(u16, fma16<Half>(a, b, c))
         : f.type == "bf16"  ? (Handler)TER(u16, fma16<Bfloat>(a, b, c))
         : f.type == "f16x2" ? (Handler)TER(u32, fma_pair<Half>(a, b, c))
                             : (Handler)TER(u32, fma_pair<Bfloat>(a, b, c));
}

Handler choose_min(Form& f) {
  if (f.has("xorsign")) return nullptr;
  return f.has("NaN") ? SIXTEEN(f.type, a != a || b != b ? NAN : min_number(a, b)) : SIXTEEN(f.type, min_number(a, b));
}
Handler choose_max(Form& f) {
  if (f.has("xorsign")) return nullptr;
  return f.has("NaN") ? SIXTEEN(f.type, a != a || b != b ? NAN : max_number(a, b)) : SIXTEEN(f.type, max_number(a, b));
}

Handler neg(Form& f) {
  if (!f.is_16_bit()) return nullptr;
  f.unary(f.bytes);
  return f.bytes == 2 ? (Handler)UN(u16, u16(a ^ 0x8000)) : (Handler)UN(u32, a ^ 0x80008000);
}
Handler abs(Form& f) {
  if (!f.is_16_bit()) return nullptr;
  f.unary(f.bytes);
  return f.bytes == 2 ? (Handler)UN(u16, u16(a & 0x7fff)) : (Handler)UN(u32, a & 0x7fff7fff);
}
Handler ex2(Form& f) {
  if (f.type != "f16") return nullptr;
  f.unary(2);
  return UN(u16, Half::down(std::exp2(Half::up(a))));
}

}  // namespace

const Family HALF = {
    {"add", binary<[](Form& f) { return SIXTEEN(f.type, exact_sum(a, b)); }>},
    {"sub", binary<[](Form& f) { return SIXTEEN(f.type, exact_sum(a, -b)); }>},
    {"mul", binary<[](Form& f) { return SIXTEEN(f.type, a * b); }>},
    {"fma", fma},
    {"min", binary<choose_min>},
    {"max", binary<choose_max>},
    {"neg", neg},
    {"abs", abs},
    {"ex2", ex2},
};

}  // namespace softgpu
