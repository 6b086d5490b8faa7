// PTX ISA, "Data Movement and Conversion Instructions": mov, cvta, isspacep, createpolicy.
#include "../machine/settings.h"
#include "lanes.h"

namespace softgpu {
namespace {

template <class T>
void move_lanes(Warp& w, I i, u32 m) {
  T* d = w.at<T>(i.o[0]);
  const T* a = w.at<T>(i.o[1]);
  EACH(d[l] = a[l])
}
void move_predicate(Warp& w, I i, u32 m) {
  u32& d = *w.at<u32>(i.o[0]);
  d = (d & ~m) | (*w.at<u32>(i.o[1]) & m);
}

// mov of a vector: the first element has the low bits. A register of 8 bits takes the place of one of 16.
template <class Whole, class Part, class Place>
void pack_lanes(Warp& w, I i, u32 m) {
  Whole* d = w.at<Whole>(i.o[0]);
  Whole v[LANES] = {};
  for (size_t k = 0; k < sizeof(Whole) / sizeof(Part); k++) {
    const Place* s = w.at<Place>(i.o[1 + k]);
    for (int l = 0; l < LANES; l++) v[l] |= Whole(Part(s[l])) << (8 * sizeof(Part) * k);
  }
  EACH(d[l] = v[l])
}
template <class Whole, class Part, class Place>
void unpack_lanes(Warp& w, I i, u32 m) {
  Whole v[LANES];
  std::memcpy(v, w.at<Whole>(i.o[0]), sizeof v);
  for (size_t k = 0; k < sizeof(Whole) / sizeof(Part); k++) {
    Place* d = w.at<Place>(i.o[1 + k]);
    EACH(d[l] = Part(v[l] >> (8 * sizeof(Part) * k)))
  }
}
template <class Whole, class Part, class Place = Part>
Handler either(bool packs) {
  return packs ? (Handler)pack_lanes<Whole, Part, Place> : (Handler)unpack_lanes<Whole, Part, Place>;
}
Handler move_vector(Form& f, bool packs) {
  const auto& list = f.in(packs ? 1 : 0).parts;
  const int part = f.bytes / int(list.size());
  f.out.o[0] = packs ? f.target(0) : f.source(1, f.bytes);
  for (size_t k = 0; k < list.size(); k++) f.out.o[1 + k] = packs ? f.decoder.source(list[k], part) : f.decoder.target(list[k]);
  if (f.bytes == 4 && part == 1) return either<u32, u8, u16>(packs);
  if (f.bytes == 4 && part == 2) return either<u32, u16>(packs);
  if (f.bytes == 8 && part == 2) return either<u64, u16>(packs);
  if (f.bytes == 8 && part == 4) return either<u64, u32>(packs);
  return nullptr;
}

// %clock, %clock64, %globaltimer
u64 time_now(Warp& w) {
  Run& run = *w.block->run;
  return run.options.own_timer ? run.timer_ns += 1000 : nanoseconds();
}
template <class T>
void read_timer(Warp& w, I i, u32 m) {
  const T now = T(time_now(w));
  if (!w.block->run->options.own_timer) w.polls++;  // a loop that reads the time waits for it: others first
  T* d = w.at<T>(i.o[0]);
  EACH(d[l] = now)
}

Handler mov(Form& f) {
  if (f.type == "pred") {
    f.unary(0);
    return move_predicate;
  }
  const bool packs = f.in(1).kind == Operand::Vector, unpacks = f.in(0).kind == Operand::Vector;
  if (packs || unpacks) return move_vector(f, packs);
  if (f.in(1).kind == Operand::Register && (f.in(1).name.starts_with("%clock") || f.in(1).name.starts_with("%globaltimer"))) {
    f.out.o[0] = f.target(0);
    return f.bytes == 4 ? (Handler)read_timer<u32> : (Handler)read_timer<u64>;
  }
  f.unary(f.bytes);
  return f.bytes == 2   ? (Handler)move_lanes<u16>
         : f.bytes == 4 ? (Handler)move_lanes<u32>
         : f.bytes == 8 ? (Handler)move_lanes<u64>
                        : nullptr;
}

u64 window(const Form& f) {
  return f.has("shared") || f.has("shared::cta") ? SHARED_WINDOW : f.has("local") ? LOCAL_WINDOW : f.has("param") ? PARAM_WINDOW : 0;
}
// A state space's address to a generic one, or back.
Handler cvta(Form& f) {
  f.unary(f.bytes);
  if (f.bytes != 8) return move_lanes<u32>;
  f.out.o[2] = f.decoder.constant(window(f), 8);
  return f.has("to") ? (Handler)BIN(u64, a - b) : (Handler)BIN(u64, a + b);
}
void in_window(Warp& w, I i, u32 m) {
  const u64 *a = w.at<u64>(i.o[2]), *b = w.at<u64>(i.o[3]);
  u32 r = 0;
  for (int l = 0; l < LANES; l++) r |= u32(a[l] >> 56 == b[l] >> 56) << l;
  set_predicate(w, i, m, r);
}
Handler isspacep(Form& f) {
  f.out.o[0] = f.target(0), f.out.o[2] = f.source(1, 8), f.out.o[3] = f.decoder.constant(window(f), 8);
  return in_window;
}
Handler createpolicy(Form& f) {  // there is no cache that it could rule
  f.out.o[0] = f.target(0), f.out.o[1] = f.decoder.constant(0, 8);
  return move_lanes<u64>;
}

}  // namespace

const Family MOVES = {{"mov", mov}, {"cvta", cvta}, {"isspacep", isspacep}, {"createpolicy", createpolicy}};

}  // namespace softgpu
