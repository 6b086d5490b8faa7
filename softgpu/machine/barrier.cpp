// PTX ISA, "Parallel Synchronization and Communication Instructions": bar.sync, bar.arrive, bar.red.
#include "watcher.h"

namespace softgpu {
namespace {

void release(Block& block, Barrier& b) {
  if (Watcher* watcher = block.watcher()) watcher->releases(block, b);
  for (Warp* w : b.waiting) {
    w->waits_at = -1;
    if (w->reduction == 1)
      for (int l = 0; l < LANES; l++) w->reduced[l] = b.count;
    else if (w->reduction)
      *w->reduced = w->reduction == 2 ? (b.all ? ALL : 0) : (b.any ? ALL : 0);
    w->reduction = 0;
  }
  b = Barrier{};
  block.run->progress++;
}

}  // namespace

// Without a number of threads a barrier waits for all warps that have not ended.
void release_if_full(Block& block, int id) {
  Barrier& b = block.barriers[id];
  if (b.arrived && b.arrived >= (b.expected ? b.expected : block.live_warps * LANES)) release(block, b);
}

// o[0] the barrier, o[1] the number of threads if b; run, if there is one, adds the predicates of bar.red.
void arrive(Warp& w, const Instruction& i, u32 mask, bool waits) {
  const int lane = __builtin_ctz(mask);
  const u32 id = w.at<u32>(i.o[0])[lane], threads = i.b ? w.at<u32>(i.o[1])[lane] : 0;
  if (id > 15) fault(w, i, lane, ILLEGAL_INSTRUCTION, "barrier " + std::to_string(id) + ": a block has 16, 0 to 15");
  if (threads % LANES) fault(w, i, lane, ILLEGAL_INSTRUCTION, "a barrier for " + std::to_string(threads) + " threads, no multiple of 32");
  Barrier& b = w.block->barriers[id];
  if (b.arrived && b.expected != threads)
    fault(w, i, lane, HUNG,
          "barrier " + std::to_string(id) + " is waited at for " + std::to_string(threads) + " threads and for " + std::to_string(b.expected));
  b.expected = threads;
  b.arrived += LANES;
  b.came.push_back({&w, mask});
  if (i.run) i.run(w, i, mask);
  if (Watcher* watcher = w.block->watcher()) watcher->arrives(w, i, mask, b, !threads);
  if (waits) {
    w.waits_at = id;
    b.waiting.push_back(&w);
  }
  release_if_full(*w.block, id);
}

}  // namespace softgpu
