// Warp-wide exchange: shfl.sync of "Data Movement and Conversion Instructions"; vote, match, activemask, redux, elect of
// "Parallel Synchronization and Communication Instructions". Nothing is ordered in memory by them.
#include <algorithm>

#include "lanes.h"

namespace softgpu {
namespace {

// a is the place of the member mask in all of them.
enum Shuffle { UP, DOWN, BFLY, IDX };
template <int MODE>
void shuffle_lanes(Warp& w, I i, u32 m) {
  u32 v[LANES], out[LANES] = {}, in_range = 0;
  std::memcpy(v, w.at<u32>(i.o[1]), sizeof v);
  const u32 *b = w.at<u32>(i.o[2]), *c = w.at<u32>(i.o[3]), *members = w.at<u32>(i.a);
  for (int l = 0; l < LANES; l++) {
    if (!(m >> l & 1)) continue;
    if (!(members[l] >> l & 1)) fault(w, i, l, ILLEGAL_INSTRUCTION, "a lane that is not in the mask of its own shuffle");
    const int offset = b[l] & 31, clamp = c[l] & 31, segment = c[l] >> 8 & 31;
    const int least = l & segment, most = least | (clamp & ~segment);
    int from = MODE == UP ? l - offset : MODE == DOWN ? l + offset : MODE == BFLY ? l ^ offset : least | (offset & ~segment);
    const bool in = MODE == UP ? from >= most : from <= most;
    if (!in) from = l;
    in_range |= u32(in) << l;
    if (from != l && !(m >> from & 1)) fault(w, i, l, ILLEGAL_INSTRUCTION, "a shuffle from lane " + std::to_string(from) + ", which does not take part");
    out[l] = v[from];
  }
  u32* d = w.at<u32>(i.o[0]);
  EACH(d[l] = out[l])
  if (!i.o[4]) return;
  u32& p = *w.at<u32>(i.o[4]);
  p = (p & ~m) | (in_range & m);
}
Handler shfl(Form& f) {
  if (!f.has("sync")) return nullptr;
  f.out.flow = Flow::WarpSync;
  f.ternary(4);
  const std::string& also = f.in(0).also;
  if (!also.empty() && also != "_") f.out.o[4] = f.decoder.place(also);
  f.out.a = f.source(4, 4);
  return f.has("up")     ? (Handler)shuffle_lanes<UP>
         : f.has("down") ? (Handler)shuffle_lanes<DOWN>
         : f.has("bfly") ? (Handler)shuffle_lanes<BFLY>
                         : (Handler)shuffle_lanes<IDX>;
}

void ballot_lanes(Warp& w, I i, u32 m) {
  const u32 p = i.b ? ~*w.at<u32>(i.o[1]) : *w.at<u32>(i.o[1]);
  const u32* members = w.at<u32>(i.a);
  u32* d = w.at<u32>(i.o[0]);
  EACH(d[l] = p & members[l] & m)
}
enum Vote { EVERY, SOME, UNIFORM };
template <int MODE>
void vote_lanes(Warp& w, I i, u32 m) {
  const u32 p = i.b ? ~*w.at<u32>(i.o[1]) : *w.at<u32>(i.o[1]);
  const u32* members = w.at<u32>(i.a);
  u32 result = 0;
  for (int l = 0; l < LANES; l++) {
    const u32 in = members[l] & m, set = p & in;
    result |= u32(MODE == EVERY ? set == in : MODE == SOME ? set != 0 : set == in || set == 0) << l;
  }
  u32& d = *w.at<u32>(i.o[0]);
  d = (d & ~m) | (result & m);
}
Handler vote(Form& f) {
  f.out.flow = Flow::WarpSync;
  f.unary(4, 0);
  f.out.a = f.source(2, 4), f.out.b = f.in(1).negated;
  return f.has("ballot") ? (Handler)ballot_lanes
         : f.has("all")  ? (Handler)vote_lanes<EVERY>
         : f.has("any")  ? (Handler)vote_lanes<SOME>
                         : (Handler)vote_lanes<UNIFORM>;
}

Handler activemask(Form& f) {
  f.out.o[0] = f.target(0);
  return [](Warp& w, I i, u32 m) {
    u32* d = w.at<u32>(i.o[0]);
    EACH(d[l] = m)
  };
}

template <class T>
void match_lanes(Warp& w, I i, u32 m) {
  const T* a = w.at<T>(i.o[1]);
  const u32* members = w.at<u32>(i.a);
  u32 r[LANES] = {};
  for (int l = 0; l < LANES; l++)
    for (int k = 0; k < LANES; k++) r[l] |= u32((members[l] & m) >> k & 1 && a[k] == a[l]) << k;
  u32* d = w.at<u32>(i.o[0]);
  EACH(d[l] = r[l])
}
Handler match(Form& f) {
  if (!f.has("any")) return nullptr;
  f.out.flow = Flow::WarpSync;
  f.unary(4, f.bytes);
  f.out.a = f.source(2, 4);
  return f.bytes == 8 ? (Handler)match_lanes<u64> : (Handler)match_lanes<u32>;
}

template <class T, auto F>
void reduce_lanes(Warp& w, I i, u32 m) {
  const T* a = w.at<T>(i.o[1]);
  const u32* members = w.at<u32>(i.a);
  T r[LANES];
  for (int l = 0; l < LANES; l++) {
    bool first = true;
    for (int k = 0; k < LANES; k++)
      if ((members[l] & m) >> k & 1) r[l] = first ? a[k] : F(r[l], a[k]), first = false;
  }
  T* d = w.at<T>(i.o[0]);
  EACH(d[l] = r[l])
}
Handler redux(Form& f) {
  f.out.flow = Flow::WarpSync;
  f.unary(4);
  f.out.a = f.source(2, 4);
  const bool is_signed = f.type == "s32";
  if (f.type == "f32") return nullptr;
  if (f.has("add")) return reduce_lanes<u32, [](u32 a, u32 b) { return a + b; }>;
  if (f.has("and")) return reduce_lanes<u32, [](u32 a, u32 b) { return a & b; }>;
  if (f.has("or")) return reduce_lanes<u32, [](u32 a, u32 b) { return a | b; }>;
  if (f.has("xor")) return reduce_lanes<u32, [](u32 a, u32 b) { return a ^ b; }>;
  if (f.has("min")) return is_signed ? (Handler)reduce_lanes<s32, [](s32 a, s32 b) { return std::min(a, b); }> : (Handler)reduce_lanes<u32, [](u32 a, u32 b) { return std::min(a, b); }>;
  if (f.has("max")) return is_signed ? (Handler)reduce_lanes<s32, [](s32 a, s32 b) { return std::max(a, b); }> : (Handler)reduce_lanes<u32, [](u32 a, u32 b) { return std::max(a, b); }>;
  return nullptr;
}

void elect_lane(Warp& w, I i, u32 m) {
  const u32 leader = __builtin_ctz(m);
  u32* d = w.at<u32>(i.o[0]);
  EACH(d[l] = leader)
  u32& p = *w.at<u32>(i.o[1]);
  p = (p & ~m) | (1u << leader & m);
}
Handler elect(Form& f) {
  f.out.flow = Flow::WarpSync;
  f.out.o[0] = f.target(0), f.out.o[1] = f.decoder.place(f.in(0).also), f.out.a = f.source(1, 4);
  return elect_lane;
}

}  // namespace

const Family WARPWIDE = {{"shfl", shfl},   {"vote", vote},   {"activemask", activemask},
                         {"match", match}, {"redux", redux}, {"elect", elect}};

}  // namespace softgpu
