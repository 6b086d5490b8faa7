// PTX ISA, "Parallel Synchronization and Communication Instructions": bar, barrier, membar, fence.
#include "../machine/watcher.h"
#include "lanes.h"

namespace softgpu {
namespace {

// o[0] barrier, o[1] threads if b, o[2] result, o[3] predicate; a: 1 popc, 2 and, 3 or; c: the predicate is negated
void add_predicate(Warp& w, I i, u32 m) {
  Barrier& b = w.block->barriers[w.at<u32>(i.o[0])[__builtin_ctz(m)] & 15];
  const u32 p = i.c ? ~*w.at<u32>(i.o[3]) : *w.at<u32>(i.o[3]);
  b.count += __builtin_popcount(p & m);
  b.any |= (p & m) != 0;
  b.all &= (p & m) == m;
  w.reduced = w.at<u32>(i.o[2]);
  w.reduction = i.a;
}

void meet(Warp& w, I i, u32 m) {
  if (Watcher* watcher = w.block->watcher()) watcher->meets(w, i, m);
}

Handler reduction(Form& f) {
  f.out.a = f.has("popc") ? 1 : f.has("and") ? 2 : 3;
  f.out.o[2] = f.target(0), f.out.o[0] = f.source(1, 4);
  f.out.b = f.count() == 4;
  if (f.out.b) f.out.o[1] = f.source(2, 4);
  f.out.o[3] = f.source(f.count() - 1, 0);
  f.out.c = f.in(f.count() - 1).negated;
  return add_predicate;
}

Handler barrier(Form& f) {
  if (f.has("cluster")) throw ParseError("(clusters)");
  if (f.has("warp")) {
    f.out.flow = Flow::WarpSync;
    f.out.a = f.source(0, 4);
    return meet;
  }
  f.out.flow = f.has("arrive") ? Flow::Arrive : Flow::Barrier;
  if (f.has("red")) return reduction(f);
  f.out.o[0] = f.source(0, 4);
  f.out.b = f.count() > 1;
  if (f.out.b) f.out.o[1] = f.source(1, 4);
  return nullptr;
}

void order(Warp& w, I i, u32 m) {
  if (Watcher* watcher = w.block->watcher()) watcher->fences(w, m, i.access.scope);
}
// membar.cta, .gl, .sys are fence.sc of these scopes.
Handler fence(Form& f) {
  if (f.has("proxy") || f.has("mbarrier_init")) return nothing;
  f.out.access.scope = f.scope();
  return order;
}

}  // namespace

const Family SYNCHRONIZATION = {{"bar", barrier}, {"barrier", barrier}, {"membar", fence}, {"fence", fence}};

}  // namespace softgpu
