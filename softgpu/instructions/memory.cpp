// PTX ISA, "Data Movement and Conversion Instructions": ld, ldu, st, and the prefetches.
#include "../machine/watcher.h"
#include "lanes.h"

namespace softgpu {
namespace {

// M in memory, R in the register; a the state space, c the number of elements, in o[0] and on.
template <class M, class R>
void load_lanes(Warp& w, I i, u32 m) {
  u64 a[LANES];
  u8* p[LANES];
  addresses(w, i, a);
  reach(w, i, m, a, Space(i.a), sizeof(M) * i.c, p);
  for (u32 k = 0; k < i.c; k++) {
    R* d = w.at<R>(i.o[k]);
    EACH({
      M v;
      std::memcpy(&v, p[l] + k * sizeof(M), sizeof(M));
      d[l] = R(v);
    })
  }
}
template <class M, class R>
void store_lanes(Warp& w, I i, u32 m) {
  u64 a[LANES];
  u8* p[LANES];
  addresses(w, i, a);
  reach(w, i, m, a, Space(i.a), sizeof(M) * i.c, p);
  for (u32 k = 0; k < i.c; k++) {
    const R* s = w.at<R>(i.o[k]);
    for (u32 rest = m; rest; rest &= rest - 1) {
      const int l = __builtin_ctz(rest);
      const M v = M(s[l]);
      std::memcpy(p[l] + k * sizeof(M), &v, sizeof(M));
    }
  }
}
// ld and st with .relaxed, .acquire, .release or .volatile: atomic on the host too, for other streams and processes.
template <class M>
void load_strong(Warp& w, I i, u32 m) {
  u64 a[LANES];
  u8* p[LANES];
  addresses(w, i, a);
  reach(w, i, m, a, Space(i.a), sizeof(M), p);
  M* d = w.at<M>(i.o[0]);
  for (int l = 0; l < LANES; l++)
    if (m >> l & 1) d[l] = __atomic_load_n(reinterpret_cast<M*>(p[l]), __ATOMIC_SEQ_CST);
  w.polls++;
}
template <class M>
void store_strong(Warp& w, I i, u32 m) {
  u64 a[LANES];
  u8* p[LANES];
  addresses(w, i, a);
  reach(w, i, m, a, Space(i.a), sizeof(M), p);
  const M* s = w.at<M>(i.o[0]);
  for (int l = 0; l < LANES; l++)
    if (m >> l & 1) __atomic_store_n(reinterpret_cast<M*>(p[l]), s[l], __ATOMIC_SEQ_CST);
}
// Kernel parameters by name: the same for all lanes.
template <class M, class R>
void load_parameter(Warp& w, I i, u32 m) {
  for (u32 k = 0; k < i.c; k++) {
    M v;
    std::memcpy(&v, w.block->grid->parameters.data() + i.offset + k * sizeof(M), sizeof(M));
    R* d = w.at<R>(i.o[k]);
    const R r = R(v);
    EACH(d[l] = r)
  }
}

// A register may be wider than the type in memory: the value is extended by its sign or by zeros.
#define BY_WIDTHS(FN)                                                                                                   \
  switch (f.bytes * 10 + width) {                                                                                       \
    case 12: return is_signed ? (Handler)FN<s8, u16> : (Handler)FN<u8, u16>;                                            \
    case 14: return is_signed ? (Handler)FN<s8, u32> : (Handler)FN<u8, u32>;                                            \
    case 18: return is_signed ? (Handler)FN<s8, u64> : (Handler)FN<u8, u64>;                                            \
    case 22: return FN<u16, u16>;                                                                                       \
    case 24: return is_signed ? (Handler)FN<s16, u32> : (Handler)FN<u16, u32>;                                          \
    case 28: return is_signed ? (Handler)FN<s16, u64> : (Handler)FN<u16, u64>;                                          \
    case 44: return FN<u32, u32>;                                                                                       \
    case 48: return is_signed ? (Handler)FN<s32, u64> : (Handler)FN<u32, u64>;                                          \
    case 88: return FN<u64, u64>;                                                                                       \
    default: return nullptr;                                                                                            \
  }

// Puts the elements into o[0] and on; returns the bytes of their registers.
int elements(Form& f, const Operand& what, bool loads) {
  const std::vector<Operand> list = what.kind == Operand::Vector ? what.parts : std::vector<Operand>{what};
  f.out.c = list.size();
  int width = f.bytes == 1 ? 2 : f.bytes;
  for (size_t k = 0; k < list.size(); k++) {
    if (list[k].kind == Operand::Register) width = f.decoder.width(list[k]);
    f.out.o[k] = loads ? f.decoder.target(list[k]) : f.decoder.source(list[k], f.bytes == 1 ? 2 : f.bytes);
  }
  return width;
}

bool is_strong(const Form& f) { return f.has("acquire") || f.has("relaxed") || f.has("release") || f.has("volatile"); }

Handler load(Form& f) {
  const int width = elements(f, f.in(0), true);
  const bool is_signed = f.type[0] == 's';
  const Operand& where = f.in(1);
  if (f.space() == Space::Param && !f.decoder.is_register(where.name)) {
    const Variable* v = f.decoder.variable(where.name);
    if (!v) throw ParseError("unknown parameter " + where.name);
    f.out.offset = v->address + where.displacement;
    BY_WIDTHS(load_parameter)
  }
  f.out.a = u32(f.space());
  f.decoder.address(where, f.out);
  if (is_strong(f)) f.out.access = {AccessKind::AtomicRead, f.has("acquire"), false, f.scope()};
  else if (f.has("nc")) f.out.access.kind = AccessKind::ReadOnly;
  if (is_strong(f) && f.out.c == 1 && width == f.bytes)
    return width == 4 ? (Handler)load_strong<u32> : width == 8 ? (Handler)load_strong<u64> : (Handler)load_strong<u16>;
  BY_WIDTHS(load_lanes)
}

Handler store(Form& f) {
  const int width = elements(f, f.in(1), false);
  const bool is_signed = false;
  f.out.a = u32(f.space());
  f.decoder.address(f.in(0), f.out);
  f.out.access.kind = AccessKind::Write;
  if (is_strong(f)) f.out.access = {AccessKind::AtomicWrite, false, f.has("release"), f.scope()};
  if (is_strong(f) && f.out.c == 1 && width == f.bytes)
    return width == 4 ? (Handler)store_strong<u32> : width == 8 ? (Handler)store_strong<u64> : (Handler)store_strong<u16>;
  BY_WIDTHS(store_lanes)
}

Handler no_effect(Form&) { return nothing; }

// There is no cache: a prefetch is judged by its address, which a GPU would not complain of, and counted.
void prefetch_lines(Warp& w, I i, u32 m) {
  u64 a[LANES];
  u8* p[LANES];
  u32 bytes[LANES];
  addresses(w, i, a);
  locate(w, i, m, a, Space::Global, 1, p);
  for (u32& n : bytes) n = 1;
  if (Watcher* watcher = w.block->watcher()) watcher->prefetches(w, m, p, bytes);
}
Handler prefetch(Form& f) {
  f.decoder.address(f.in(0), f.out);
  return f.has("global") && f.has("L2") ? prefetch_lines : nullptr;
}

}  // namespace

const Family MEMORY = {{"ld", load},           {"ldu", load},           {"st", store},         {"prefetch", prefetch},
                       {"prefetchu", no_effect}, {"discard", no_effect}, {"applypriority", no_effect}};

}  // namespace softgpu
