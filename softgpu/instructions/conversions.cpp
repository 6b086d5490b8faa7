// PTX ISA, "Data Movement and Conversion Instructions: cvt".
#include "cvt_value.h"
#include "lanes.h"

namespace softgpu {
namespace {

const std::map<std::string, Type> TYPES = {{"u8", U8}, {"b8", U8},   {"u16", U16}, {"b16", U16}, {"u32", U32}, {"b32", U32}, {"u64", U64},   {"b64", U64},
                                           {"s8", S8}, {"s16", S16}, {"s32", S32}, {"s64", S64}, {"f16", F16}, {"bf16", BF16}, {"f32", F32}, {"f64", F64}};
const std::map<std::string, Rounding> ROUNDINGS = {{"rni", RNI}, {"rzi", RZI}, {"rmi", RMI}, {"rpi", RPI}, {"rn", RN}, {"rz", RZ}, {"rm", RM}, {"rp", RP}};

// a the types and the rounding, b the modifiers.
template <class D, class A>
void cvt_lanes(Warp& w, I i, u32 m) {
  const Conversion c{Type(i.a & 255), Type(i.a >> 8 & 255), Rounding(i.a >> 16), bool(i.b & 1), bool(i.b & 2), bool(i.b & 4)};
  D* d = w.at<D>(i.o[0]);
  const A* a = w.at<A>(i.o[1]);
  for (u32 rest = m; rest; rest &= rest - 1) {
    const int l = __builtin_ctz(rest);
    d[l] = D(convert(c, a[l]));
  }
}
template <class D>
Handler from_width(int bytes) {
  return bytes == 2 ? (Handler)cvt_lanes<D, u16> : bytes == 4 ? (Handler)cvt_lanes<D, u32> : (Handler)cvt_lanes<D, u64>;
}

// cvt.rn.f16x2.f32 d, high, low
template <class N>
void cvt_pair(Warp& w, I i, u32 m) {
  u32* d = w.at<u32>(i.o[0]);
  const float *a = w.at<float>(i.o[1]), *b = w.at<float>(i.o[2]);
  EACH({
    const float x = i.b && a[l] < 0 ? 0 : a[l], y = i.b && b[l] < 0 ? 0 : b[l];
    d[l] = u32(to_16_bits<N>(x, Rounding(i.a))) << 16 | to_16_bits<N>(y, Rounding(i.a));
  })
}
template <class N>
void cvt_pair_to_nearest(Warp& w, I i, u32 m) {
  u32* d = w.at<u32>(i.o[0]);
  const float *a = w.at<float>(i.o[1]), *b = w.at<float>(i.o[2]);
  EACH(d[l] = u32(N::down(a[l])) << 16 | N::down(b[l]))
}
template <bool E4M3>
void cvt_floats_to_fp8(Warp& w, I i, u32 m) {
  u16* d = w.at<u16>(i.o[0]);
  const float *a = w.at<float>(i.o[1]), *b = w.at<float>(i.o[2]);
  EACH(d[l] = u16(to_fp8(a[l], E4M3) << 8 | to_fp8(b[l], E4M3)))
}
template <bool E4M3>
void cvt_halves_to_fp8(Warp& w, I i, u32 m) {
  u16* d = w.at<u16>(i.o[0]);
  const u32* a = w.at<u32>(i.o[1]);
  EACH(d[l] = u16(to_fp8(half_to_float(a[l] >> 16), E4M3) << 8 | to_fp8(half_to_float(a[l]), E4M3)))
}
template <bool E4M3>
void cvt_fp8_to_halves(Warp& w, I i, u32 m) {
  u32* d = w.at<u32>(i.o[0]);
  const u16* a = w.at<u16>(i.o[1]);
  EACH(d[l] = u32(float_to_half(from_fp8(a[l] >> 8, E4M3))) << 16 | float_to_half(from_fp8(a[l] & 255, E4M3)))
}

void cvt_floats_to_fp4(Warp& w, I i, u32 m) {
  u16* d = w.at<u16>(i.o[0]);  // a register of 8 bits
  const float *a = w.at<float>(i.o[1]), *b = w.at<float>(i.o[2]);
  EACH(d[l] = u16(to_fp4(a[l]) << 4 | to_fp4(b[l])))
}

bool is_fp8_pair(const std::string& t) { return t == "e4m3x2" || t == "e5m2x2"; }

Handler cvt_packed(Form& f, const std::string& to, Rounding r) {
  if (to == "e2m1x2") {
    if (f.type != "f32" || f.relu) return nullptr;
    f.binary(4);
    return cvt_floats_to_fp4;
  }
  if (to == "f16x2" && is_fp8_pair(f.type)) {
    f.unary(4, 2);
    return f.type == "e4m3x2" ? (Handler)cvt_fp8_to_halves<true> : (Handler)cvt_fp8_to_halves<false>;
  }
  if (is_fp8_pair(to)) {
    if (f.relu) return nullptr;
    const bool e4m3 = to == "e4m3x2";
    if (f.type == "f16x2") {
      f.unary(2, 4);
      return e4m3 ? (Handler)cvt_halves_to_fp8<true> : (Handler)cvt_halves_to_fp8<false>;
    }
    f.binary(4);
    return e4m3 ? (Handler)cvt_floats_to_fp8<true> : (Handler)cvt_floats_to_fp8<false>;
  }
  f.binary(4);
  f.out.a = r, f.out.b = f.relu;
  if (r == RN && !f.relu) return to == "f16x2" ? (Handler)cvt_pair_to_nearest<Half> : (Handler)cvt_pair_to_nearest<Bfloat>;
  return to == "f16x2" ? (Handler)cvt_pair<Half> : (Handler)cvt_pair<Bfloat>;
}

// Conversions that are met most have functions of their own.
struct Quick {
  const char *to, *from;
  Rounding rounding;
  int to_bytes, from_bytes;
  Handler run;
};
#define QUICK(T, F, ROUNDING, D, A, ...) {T, F, ROUNDING, sizeof(D), sizeof(A), op1<D, A, [](A a) -> D { return __VA_ARGS__; }>}
const Quick QUICK_ONES[] = {
    QUICK("f32", "f16", NONE, float, u16, half_to_float(a)),
    QUICK("f32", "bf16", NONE, float, u16, bf16_to_float(a)),
    QUICK("f16", "f32", RN, u16, float, float_to_half_n(a)),
    QUICK("bf16", "f32", RN, u16, float, float_to_bf16(a)),
    QUICK("s64", "s32", NONE, s64, s32, a),
    QUICK("u64", "u32", NONE, u64, u32, a),
    QUICK("u32", "u64", NONE, u32, u64, u32(a)),
    QUICK("s32", "s64", NONE, u32, u64, u32(a)),
    QUICK("u32", "u16", NONE, u32, u16, a),
    QUICK("u16", "u32", NONE, u16, u32, u16(a)),
    QUICK("s32", "s16", NONE, s32, s16, a),
    QUICK("u64", "u16", NONE, u64, u16, a),
    QUICK("f32", "s32", RN, float, s32, float(a)),
    QUICK("f32", "u32", RN, float, u32, float(a)),
    QUICK("f64", "f32", NONE, double, float, double(a)),
    QUICK("f32", "f64", RN, float, double, float(a)),
};

Handler cvt(Form& f) {
  const std::string& to = f.part_from_end(2);
  Rounding r = NONE;
  for (auto& p : f.statement.parts)
    if (const auto found = ROUNDINGS.find(p); found != ROUNDINGS.end()) r = found->second;
  const bool saturates = is_fp8_pair(to) || to == "e2m1x2";
  if (f.has("rna") || f.has("satfinite") ? !saturates : false) return nullptr;
  if (to == "f16x2" || to == "bf16x2" || saturates) return cvt_packed(f, to, r);
  if (!TYPES.count(to) || !TYPES.count(f.type)) return nullptr;
  const int from_bytes = f.in(1).kind == Operand::Register ? f.decoder.width(f.in(1)) : std::max(2, f.bytes), to_bytes = f.decoder.width(f.in(0));
  f.unary(to_bytes, from_bytes);
  const bool plain = !f.ftz && !f.sat && !f.relu;
  for (auto& q : QUICK_ONES)
    if (plain && to == q.to && f.type == q.from && r == q.rounding && to_bytes == q.to_bytes && from_bytes == q.from_bytes) return q.run;
  f.out.a = u32(TYPES.at(to)) | u32(TYPES.at(f.type)) << 8 | u32(r) << 16;
  f.out.b = (f.ftz ? 1 : 0) | (f.sat ? 2 : 0) | (f.relu ? 4 : 0);
  return to_bytes == 2 ? from_width<u16>(from_bytes) : to_bytes == 4 ? from_width<u32>(from_bytes) : from_width<u64>(from_bytes);
}

}  // namespace

const Family CONVERSIONS = {{"cvt", cvt}};

}  // namespace softgpu
