// PTX ISA, "Parallel Synchronization and Communication Instructions": atom, red.
#include <algorithm>

#include "lanes.h"

namespace softgpu {
namespace {

// o[0] the old value, o[1], o[2] operands. Atomic on the host too, for other streams and processes; lanes one by one.
template <class M, auto F>
void atomic_lanes(Warp& w, I i, u32 m) {
  u64 a[LANES];
  u8* p[LANES];
  addresses(w, i, a);
  reach(w, i, m, a, Space(i.a), sizeof(M), p);
  M* d = w.at<M>(i.o[0]);
  const M *b = w.at<M>(i.o[1]), *c = w.at<M>(i.o[2]);
  M olds[LANES] = {};
  for (u32 rest = m; rest; rest &= rest - 1) {
    const int l = __builtin_ctz(rest);
    M* at = reinterpret_cast<M*>(p[l]);
    M old = __atomic_load_n(at, __ATOMIC_SEQ_CST);
    while (!__atomic_compare_exchange_n(at, &old, F(old, b[l], c[l]), false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
    }
    olds[l] = old;
  }
  EACH(d[l] = olds[l])
  w.polls++;
}

#define ATOM(T, U, ...)                                                                                     \
  atomic_lanes<U, [](U o, U x, U y) -> U {                                                                  \
    [[maybe_unused]] const T old = std::bit_cast<T>(o), b = std::bit_cast<T>(x), c = std::bit_cast<T>(y);   \
    return std::bit_cast<U>(T(__VA_ARGS__));                                                                \
  }>
#define BITS(f, ...) (f.bytes == 8 ? (Handler)ATOM(u64, u64, __VA_ARGS__) : (Handler)ATOM(u32, u32, __VA_ARGS__))
#define ORDERED(f, ...)                                    \
  (f.type == "s32"   ? (Handler)ATOM(s32, u32, __VA_ARGS__) \
   : f.type == "u32" ? (Handler)ATOM(u32, u32, __VA_ARGS__) \
   : f.type == "s64" ? (Handler)ATOM(s64, u64, __VA_ARGS__) \
                     : (Handler)ATOM(u64, u64, __VA_ARGS__))

template <class N>
u16 sum16(u16 a, u16 b) {
  return N::down(odd_float(odd_sum(N::up(a), N::up(b))));
}
template <class N>
u32 sum16x2(u32 a, u32 b) {
  return u32(sum16<N>(a >> 16, b >> 16)) << 16 | sum16<N>(a, b);
}
Handler add(Form& f) {
  if (f.type == "f32") return ATOM(float, u32, old + b);
  if (f.type == "f64") return ATOM(double, u64, old + b);
  if (f.type == "f16") return ATOM(u16, u16, sum16<Half>(old, b));
  if (f.type == "bf16") return ATOM(u16, u16, sum16<Bfloat>(old, b));
  if (f.type == "f16x2") return ATOM(u32, u32, sum16x2<Half>(old, b));
  if (f.type == "bf16x2") return ATOM(u32, u32, sum16x2<Bfloat>(old, b));
  return BITS(f, old + b);
}

Handler operation(Form& f) {
  if (f.has("add")) return add(f);
  if (f.has("exch")) return BITS(f, b);
  if (f.has("cas")) return f.bytes == 2 ? (Handler)ATOM(u16, u16, old == b ? c : old) : BITS(f, old == b ? c : old);
  if (f.has("and")) return BITS(f, old & b);
  if (f.has("or")) return BITS(f, old | b);
  if (f.has("xor")) return BITS(f, old ^ b);
  if (f.has("inc")) return ATOM(u32, u32, old >= b ? 0 : old + 1);
  if (f.has("dec")) return ATOM(u32, u32, old == 0 || old > b ? b : old - 1);
  if (f.has("min")) return ORDERED(f, std::min(old, b));
  if (f.has("max")) return ORDERED(f, std::max(old, b));
  return nullptr;
}

Handler atom(Form& f) {
  const bool red = f.op == "red";
  const size_t at = red ? 0 : 1;
  f.out.a = u32(f.space());
  f.decoder.address(f.in(at), f.out);
  f.out.o[0] = red ? f.decoder.scratch : f.target(0);
  f.out.o[1] = f.source(at + 1, f.bytes);
  f.out.o[2] = f.count() > at + 2 ? f.source(at + 2, f.bytes) : f.out.o[1];
  const bool both = f.has("acq_rel");
  f.out.access = {AccessKind::AtomicModify, both || f.has("acquire"), both || f.has("release"), f.scope()};
  return operation(f);
}

}  // namespace

const Family ATOMICS = {{"atom", atom}, {"red", atom}};

}  // namespace softgpu
