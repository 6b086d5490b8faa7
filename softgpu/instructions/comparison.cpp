// PTX ISA, "Comparison and Selection Instructions" and "Half Precision Comparison Instructions".
#include <array>

#include "lanes.h"

namespace softgpu {
namespace {

// "CmpOp": ordered comparisons are false for NaN, unordered ones (…u) true.
enum Compare { EQ, NE, LT, LE, GT, GE, EQU, NEU, LTU, LEU, GTU, GEU, NUM, IS_NAN, COMPARISONS };
const std::map<std::string, int> NAMES = {{"eq", EQ},   {"ne", NE},   {"lt", LT},   {"le", LE},   {"gt", GT},   {"ge", GE},
                                          {"lo", LT},   {"ls", LE},   {"hi", GT},   {"hs", GE},   {"equ", EQU}, {"neu", NEU},
                                          {"ltu", LTU}, {"leu", LEU}, {"gtu", GTU}, {"geu", GEU}, {"num", NUM}, {"nan", IS_NAN}};

template <class T, int C>
bool compare(T a, T b) {
  if constexpr (C == EQ) return a == b;
  else if constexpr (C == NE) return a < b || a > b;
  else if constexpr (C == LT) return a < b;
  else if constexpr (C == LE) return a <= b;
  else if constexpr (C == GT) return a > b;
  else if constexpr (C == GE) return a >= b;
  else if constexpr (C == EQU) return !(a < b || a > b);
  else if constexpr (C == NEU) return !(a == b);
  else if constexpr (C == LTU) return !(a >= b);
  else if constexpr (C == LEU) return !(a > b);
  else if constexpr (C == GTU) return !(a <= b);
  else if constexpr (C == GEU) return !(a < b);
  else if constexpr (C == NUM) return a == a && b == b;
  else return a != a || b != b;
}

template <class T, int C>
void setp_lanes(Warp& w, I i, u32 m) {
  const T *a = w.at<T>(i.o[2]), *b = w.at<T>(i.o[3]);
  u32 r = 0;
  for (int l = 0; l < LANES; l++) r |= u32(compare<T, C>(a[l], b[l])) << l;
  set_predicate(w, i, m, r);
}
template <class N, int C>
void setp_lanes16(Warp& w, I i, u32 m) {
  const u16 *a = w.at<u16>(i.o[2]), *b = w.at<u16>(i.o[3]);
  u32 r = 0;
  for (int l = 0; l < LANES; l++) r |= u32(compare<float, C>(N::up(a[l]), N::up(b[l]))) << l;
  set_predicate(w, i, m, r);
}
// Of a pair: the predicate of the low half, and that of the high one.
template <class N, int C>
void setp_lanes16x2(Warp& w, I i, u32 m) {
  const u32 *a = w.at<u32>(i.o[2]), *b = w.at<u32>(i.o[3]);
  u32 low = 0, high = 0;
  for (int l = 0; l < LANES; l++) {
    low |= u32(compare<float, C>(N::up(a[l]), N::up(b[l]))) << l;
    high |= u32(compare<float, C>(N::up(a[l] >> 16), N::up(b[l] >> 16))) << l;
  }
  u32 &p = *w.at<u32>(i.o[0]), &q = *w.at<u32>(i.o[1]);
  p = (p & ~m) | (low & m);
  q = (q & ~m) | (high & m);
}
// set: a is what stands for true.
template <class T, int C>
void set_lanes(Warp& w, I i, u32 m) {
  const T *a = w.at<T>(i.o[2]), *b = w.at<T>(i.o[3]);
  u32* d = w.at<u32>(i.o[0]);
  EACH(d[l] = compare<T, C>(a[l], b[l]) ? i.a : 0)
}
template <class N, int C>
void set_lanes16x2(Warp& w, I i, u32 m) {
  const u32 *a = w.at<u32>(i.o[2]), *b = w.at<u32>(i.o[3]);
  u32* d = w.at<u32>(i.o[0]);
  EACH({
    const bool low = compare<float, C>(N::up(a[l]), N::up(b[l])), high = compare<float, C>(N::up(a[l] >> 16), N::up(b[l] >> 16));
    d[l] = (low ? i.a : 0) | (high ? i.a << 16 : 0);
  })
}

using Table = std::array<Handler, COMPARISONS>;
#define TABLE_OF(FN, T)                                                                                             \
  Table{FN<T, EQ>,  FN<T, NE>,  FN<T, LT>,  FN<T, LE>,  FN<T, GT>,  FN<T, GE>,  FN<T, EQU>,                         \
        FN<T, NEU>, FN<T, LTU>, FN<T, LEU>, FN<T, GTU>, FN<T, GEU>, FN<T, NUM>, FN<T, IS_NAN>}

Handler from(const std::map<std::string, Table>& tables, const Form& f) {
  const auto name = NAMES.find(f.statement.parts.at(0));
  const auto table = tables.find(f.type);
  return name == NAMES.end() || table == tables.end() ? nullptr : table->second[name->second];
}

Handler set(Form& f) {
  static const std::map<std::string, Table> tables = {
      {"f16x2", TABLE_OF(set_lanes16x2, Half)}, {"bf16x2", TABLE_OF(set_lanes16x2, Bfloat)}, {"f32", TABLE_OF(set_lanes, float)},
      {"s32", TABLE_OF(set_lanes, s32)},        {"u32", TABLE_OF(set_lanes, u32)},           {"b32", TABLE_OF(set_lanes, u32)}};
  f.out.o[0] = f.target(0), f.out.o[2] = f.source(1, f.bytes), f.out.o[3] = f.source(2, f.bytes);
  const std::string& to = f.part_from_end(2);
  const bool pair = f.type == "f16x2" || f.type == "bf16x2";
  f.out.a = to == "f16x2" ? 0x3c00 : to == "bf16x2" ? 0x3f80 : to == "f32" ? 0x3f800000 : pair ? 0xffff : ALL;
  return from(tables, f);
}

Handler setp(Form& f) {
  static const std::map<std::string, Table> tables = {
      {"u16", TABLE_OF(setp_lanes, u16)},        {"b16", TABLE_OF(setp_lanes, u16)},      {"s16", TABLE_OF(setp_lanes, s16)},
      {"u32", TABLE_OF(setp_lanes, u32)},        {"b32", TABLE_OF(setp_lanes, u32)},      {"s32", TABLE_OF(setp_lanes, s32)},
      {"u64", TABLE_OF(setp_lanes, u64)},        {"b64", TABLE_OF(setp_lanes, u64)},      {"s64", TABLE_OF(setp_lanes, s64)},
      {"f32", TABLE_OF(setp_lanes, float)},      {"f64", TABLE_OF(setp_lanes, double)},   {"f16", TABLE_OF(setp_lanes16, Half)},
      {"bf16", TABLE_OF(setp_lanes16, Bfloat)},  {"f16x2", TABLE_OF(setp_lanes16x2, Half)}, {"bf16x2", TABLE_OF(setp_lanes16x2, Bfloat)}};
  f.out.o[0] = f.target(0), f.out.o[2] = f.source(1, f.bytes), f.out.o[3] = f.source(2, f.bytes);
  const std::string& also = f.in(0).also;
  if (!also.empty() && also != "_") f.out.o[1] = f.decoder.place(also);
  if (f.count() == 4) {
    f.out.a = f.has("and") ? 1 : f.has("or") ? 2 : 3;
    f.out.o[4] = f.source(3, 0), f.out.b = f.in(3).negated;
  }
  if ((f.type == "f16x2" || f.type == "bf16x2") && (!f.out.o[1] || f.out.a)) return nullptr;
  return from(tables, f);
}

template <class T>
void select_lanes(Warp& w, I i, u32 m) {
  T* d = w.at<T>(i.o[0]);
  const T *a = w.at<T>(i.o[1]), *b = w.at<T>(i.o[2]);
  const u32 p = i.a ? ~*w.at<u32>(i.o[3]) : *w.at<u32>(i.o[3]);
  EACH(d[l] = p >> l & 1 ? a[l] : b[l])
}
Handler selp(Form& f) {
  f.binary(f.bytes);
  f.out.o[3] = f.source(3, 0), f.out.a = f.in(3).negated;
  return f.bytes == 2 ? (Handler)select_lanes<u16> : f.bytes == 4 ? (Handler)select_lanes<u32> : (Handler)select_lanes<u64>;
}
Handler slct(Form& f) {
  f.ternary(f.bytes);
  if (f.bytes != 4) return nullptr;
  return f.type == "f32" ? (Handler)op3<u32, u32, u32, float, [](u32 a, u32 b, float c) { return c >= 0 ? a : b; }>
                         : (Handler)op3<u32, u32, u32, s32, [](u32 a, u32 b, s32 c) { return c >= 0 ? a : b; }>;
}

}  // namespace

const Family COMPARISON = {{"set", set}, {"setp", setp}, {"selp", selp}, {"slct", slct}};

}  // namespace softgpu
