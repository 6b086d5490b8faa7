// PTX ISA, "Floating Point Instructions": float32 and float64, with .rn .rz .rm .rp, .ftz and .sat.
#include "lanes.h"

namespace softgpu {
namespace {

// The handler H under a rounding of the host's other than to nearest.
template <auto H>
__attribute__((noinline)) void rounded(Warp& w, I i, u32 m) {
  static const int modes[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD};
  const int before = std::fegetround();
  std::fesetround(modes[i.c]);
  H(w, i, m);
  std::fesetround(before);
}
// .ftz: subnormal operands and results are zero; by the host's own flushing.
template <auto H>
__attribute__((noinline)) void flushed(Warp& w, I i, u32 m) {
  const u32 before = _mm_getcsr();
  _mm_setcsr(before | 0x8040);
  H(w, i, m);
  _mm_setcsr(before);
}
template <auto H>
void saturated(Warp& w, I i, u32 m) {
  H(w, i, m);
  float* d = w.at<float>(i.o[0]);
  EACH(d[l] = saturate(d[l]))
}

template <auto H>
Handler with_modifiers(const Form& f) {
  if (f.rounding) return rounded<H>;
  if (f.ftz) return f.sat ? (Handler)saturated<flushed<H>> : (Handler)flushed<H>;
  return f.sat ? (Handler)saturated<H> : (Handler)H;
}
template <auto H32, auto H64>
Handler by_width(Form& f) {
  f.out.c = f.rounding;
  if (f.type == "f32") return with_modifiers<H32>(f);
  return f.type == "f64" ? (f.rounding ? (Handler)rounded<H64> : (Handler)H64) : nullptr;
}
#define FLOATS(MACRO, f, ...) by_width<&MACRO(float, __VA_ARGS__), &MACRO(double, __VA_ARGS__)>(f)

template <auto CHOICE>
Handler binary(Form& f) {
  if (!f.is_float()) return nullptr;
  f.binary(f.bytes);
  return CHOICE(f);
}
template <auto CHOICE>
Handler unary(Form& f) {
  if (!f.is_float()) return nullptr;
  f.unary(f.bytes);
  return CHOICE(f);
}

Handler fma(Form& f) {
  if (!f.is_float()) return nullptr;
  f.ternary(f.bytes);
  return by_width<&TER(float, __builtin_fmaf(a, b, c)), &TER(double, __builtin_fma(a, b, c))>(f);
}

Handler choose_min(Form& f) {
  if (f.has("xorsign")) return nullptr;
  return f.has("NaN") ? FLOATS(BIN, f, a != a || b != b ? NAN : min_number(a, b)) : FLOATS(BIN, f, min_number(a, b));
}
Handler choose_max(Form& f) {
  if (f.has("xorsign")) return nullptr;
  return f.has("NaN") ? FLOATS(BIN, f, a != a || b != b ? NAN : max_number(a, b)) : FLOATS(BIN, f, max_number(a, b));
}
Handler choose_neg(Form& f) {
  if (f.type == "f64") return UN(double, -a);
  return f.ftz ? (Handler)UN(float, flush(-a)) : (Handler)UN(float, -a);
}
Handler choose_abs(Form& f) {
  if (f.type == "f64") return UN(double, std::fabs(a));
  return f.ftz ? (Handler)UN(float, flush(std::fabs(a))) : (Handler)UN(float, std::fabs(a));
}

// The first operand gives the sign.
Handler copysign(Form& f) {
  f.binary(f.bytes);
  return f.type == "f32" ? (Handler)BIN(float, std::copysign(b, a)) : (Handler)BIN(double, std::copysign(b, a));
}

template <class T, auto TEST>
void test_lanes(Warp& w, I i, u32 m) {
  const T* a = w.at<T>(i.o[2]);
  u32 r = 0;
  for (int l = 0; l < LANES; l++) r |= u32(TEST(a[l])) << l;
  set_predicate(w, i, m, r);
}
template <class T>
Handler choose_test(const std::string& what) {
  if (what == "finite") return test_lanes<T, [](T x) { return bool(std::isfinite(x)); }>;
  if (what == "infinite") return test_lanes<T, [](T x) { return bool(std::isinf(x)); }>;
  if (what == "number") return test_lanes<T, [](T x) { return x == x; }>;
  if (what == "notanumber") return test_lanes<T, [](T x) { return x != x; }>;
  if (what == "normal") return test_lanes<T, [](T x) { return bool(std::isnormal(x)); }>;
  return test_lanes<T, [](T x) { return std::fpclassify(x) == FP_SUBNORMAL; }>;
}
Handler testp(Form& f) {
  f.out.o[0] = f.target(0), f.out.o[2] = f.source(1, f.bytes);
  const std::string& what = f.statement.parts[0];
  return f.bytes == 4 ? choose_test<float>(what) : choose_test<double>(what);
}

}  // namespace

// .approx functions are those of the host's libm: the device's last bits differ.
const Family FLOATING = {
    {"add", binary<[](Form& f) { return FLOATS(BIN, f, a + b); }>},
    {"sub", binary<[](Form& f) { return FLOATS(BIN, f, a - b); }>},
    {"mul", binary<[](Form& f) { return FLOATS(BIN, f, a * b); }>},
    {"div", binary<[](Form& f) { return FLOATS(BIN, f, a / b); }>},
    {"fma", fma},
    {"mad", fma},
    {"min", binary<choose_min>},
    {"max", binary<choose_max>},
    {"neg", unary<choose_neg>},
    {"abs", unary<choose_abs>},
    {"sqrt", unary<[](Form& f) { return FLOATS(UN, f, std::sqrt(a)); }>},
    {"rcp", unary<[](Form& f) { return FLOATS(UN, f, 1 / a); }>},
    {"rsqrt", unary<[](Form& f) { return FLOATS(UN, f, decltype(a)(1 / std::sqrt(double(a)))); }>},
    {"ex2", unary<[](Form& f) { return FLOATS(UN, f, std::exp2(a)); }>},
    {"lg2", unary<[](Form& f) { return FLOATS(UN, f, std::log2(a)); }>},
    {"sin", unary<[](Form& f) { return FLOATS(UN, f, std::sin(a)); }>},
    {"cos", unary<[](Form& f) { return FLOATS(UN, f, std::cos(a)); }>},
    {"tanh", unary<[](Form& f) { return FLOATS(UN, f, std::tanh(a)); }>},
    {"copysign", copysign},
    {"testp", testp},
};

}  // namespace softgpu
