// Warp collectives and barriers: lanes deposit their operands and sleep; the last to arrive works for all.
#include "runtime.h"

namespace simt {

// Rendezvous of the lanes in mask. Operands stay where they are, on the stacks of the sleeping lanes. Nothing
// is ordered in memory by this: only __syncwarp and barriers do that, as the PTX memory model says.
void collective(uint32_t mask, const char* op, void* operands, Body body, int line) {
  Lane* lane = state.lane;
  Block* block = lane->block;
  const int first = lane->index & ~31, lanes = block->launch->threads - first;
  Warp& warp = block->warps[lane->index / 32];
  const uint32_t self = 1u << (lane->index & 31), there = lanes >= 32 ? ~0u : (1u << lanes) - 1;
  const uint32_t absent = mask & (warp.exited | ~there);
  if (!(mask & self)) fail("%s at line %d: the lane is not in its own mask %08x", op, line, mask);
  if (absent)
    fail("%s at line %d: lanes %08x of mask %08x have exited or do not exist", op, line, absent, mask);
  lane->pending = {mask, op, operands, line};
  warp.arrived |= self;
  // agreeing with one of those who wait is agreeing with all of them
  const Pending& other = block->lanes[first + __builtin_ctz(mask & warp.arrived)].pending;
  if (other.mask != mask || other.op != op || other.line != line)
    fail("divergent warp collective: %s mask %08x at line %d meets %s mask %08x at line %d", op, mask, line,
         other.op, other.mask, other.line);
  if ((warp.arrived & mask) != mask) return block_on(op, line);

  void* all[32] = {};
  for (uint32_t m = mask; m; m &= m - 1)
    all[__builtin_ctz(m)] = block->lanes[first + __builtin_ctz(m)].pending.operands;
  if (body) body(all, mask);
  warp.arrived &= ~mask;
  for (uint32_t m = mask; m; m &= m - 1) wake(&block->lanes[first + __builtin_ctz(m)]);
  state.idle_spins = 0;
}

void syncwarp(uint32_t mask, int line) {
  const Body join = [](void** lanes, uint32_t mask) {
    VectorClock known;
    for (int i = 0; i < 32; i++)
      if (mask >> i & 1) known.join(publish(static_cast<Lane*>(lanes[i])));
    for (int i = 0; i < 32; i++)
      if (mask >> i & 1) static_cast<Lane*>(lanes[i])->known = known;
  };
  collective(mask, "syncwarp", state.lane, state.check ? join : nullptr, line);
}

struct Shuffle {
  uint64_t value, result;
  int source;
};

uint64_t shuffle(uint32_t mask, const char* op, uint64_t value, int source, int line) {
  Shuffle mine{value, value, source};
  collective(
      mask, op, &mine,
      [](void** all, uint32_t mask) {
        for (int i = 0; i < 32; i++) {
          if (!(mask >> i & 1)) continue;
          auto* s = static_cast<Shuffle*>(all[i]);
          if (!(mask >> s->source & 1))
            fail("shuffle from lane %d, which is not in mask %08x", s->source, mask);
          s->result = static_cast<Shuffle*>(all[s->source])->value;
        }
      },
      line);
  return mine.result;
}

// bar.sync (wait) and bar.arrive: `count` threads, 0 for all of the block.
void barrier(int id, int count, bool wait, int line) {
  Lane* lane = state.lane;
  Block* block = lane->block;
  Barrier& bar = block->barriers[id & 15];
  const int threads = block->launch->threads, needed = count ? count : (threads + 31) / 32 * 32;
  if (count % 32) fail("barrier %d at line %d: count %d is not a multiple of 32", id, line, count);
  if (!count && block->alive != threads)
    fail("__syncthreads at line %d after %d threads have exited", line, threads - block->alive);
  if (bar.arrived && bar.needed != needed)
    fail("barrier %d at line %d: count %d, others gave %d", id, line, needed, bar.needed);
  int& warp_line = bar.line_of_warp[lane->index / 32];
  if (warp_line && warp_line != line)
    fail("divergent barrier %d: lanes of one warp at line %d and line %d", id, warp_line, line);
  bar.needed = needed, warp_line = line, bar.arrived++;
  if (state.check) bar.known.join(lane->known), bar.clocks.push_back({lane->index, lane->now++});
  if (wait) bar.waiters.push_back(lane);
  if (bar.arrived < (count ? needed : threads)) {
    if (wait) block_on("barrier", line);
    return;
  }
  Barrier done;
  std::swap(done, bar);
  if (state.check) done.known.stamp(block->id, done.clocks, state.threads_per_block);
  for (Lane* waiter : done.waiters) wake(waiter), waiter->known = done.known;
  state.idle_spins = 0;
}

}  // namespace simt
