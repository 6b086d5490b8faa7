// Warps of a block: who runs next, and when a block has to be set aside.
#include <sched.h>

#include <algorithm>

#include "settings.h"
#include "watcher.h"

namespace softgpu {
namespace {

void make_room(Block& block, const Grid& grid) {
  const Program& p = *grid.program;
  const u32 warps = (grid.threads() + LANES - 1) / LANES;
  block.grid = &grid;
  block.warps.clear();
  block.warps.resize(warps);
  block.registers.resize(std::max(u64(block.registers.size()), u64(p.register_bytes) * warps + 64));  // old values stay, as on a GPU
  u8* first = reinterpret_cast<u8*>((u64(block.registers.data()) + 63) / 64 * 64);
  block.local.assign(p.local_bytes * warps * LANES, 0);
  for (u32 n = 0; n < warps; n++) {
    Warp& w = block.warps[n];
    w.registers = first + u64(p.register_bytes) * n;
    w.block = &block, w.program = &p, w.number = n;
    for (auto& [place, bytes] : p.constants) std::memcpy(w.registers + place, bytes.data(), bytes.size());
  }
}

void restart(Warp& w, u32 threads) {
  const u32 here = std::min<u32>(LANES, threads - w.number * LANES);
  w.live = here == LANES ? ALL : (1u << here) - 1;
  w.splits.assign(1, {0, w.live, false});
  w.waits_at = -1, w.turn = 0, w.reduction = 0, w.polls = 0;
  w.copies.clear();
  std::memset(w.committed, 0, sizeof w.committed);
  set_special_registers(w);
}

[[noreturn]] void all_wait(Block& block) {
  Warp* first = nullptr;
  std::string others;
  for (Warp& w : block.warps) {
    if (w.splits.empty()) continue;
    if (!first) first = &w;
    else others += "\n  warp " + std::to_string(w.number) + " at barrier " + std::to_string(w.waits_at) + place_of(*w.program, w.program->code[w.splits[0].pc - 1]);
  }
  fault(*first, first->program->code[first->splits[0].pc - 1], __builtin_ctz(first->splits[0].mask), HUNG,
        "deadlock: all warps of the block wait at barriers that nobody else comes to, this one at barrier " +
            std::to_string(first->waits_at) + others);
}

}  // namespace

void start(Block& block, Run& run, const Grid& grid, u64 number) {
  block.run = &run;
  if (block.grid != &grid) make_room(block, grid);
  block.number = number;
  block.at = {u32(number % grid.grid.x), u32(number / grid.grid.x % grid.grid.y), u32(number / grid.grid.x / grid.grid.y)};
  block.shared.resize(grid.program->static_shared + grid.dynamic_shared + grid.red_zones);
  if (settings().fill) std::memset(block.shared.data(), 0xff, block.shared.size());
  block.live_warps = block.warps.size();
  for (auto& b : block.barriers) b = Barrier{};
  for (Warp& w : block.warps) restart(w, grid.threads());
  if (Watcher* watcher = block.watcher()) watcher->begins(block);
}

Outcome run(Block& block, s64 budget) {
  Dice& dice = block.run->dice;
  const bool random = block.run->random();
  const size_t count = block.warps.size();
  for (;;) {
    bool any = false, progress = false, polls_only = true;
    const size_t first = random ? dice.roll(count) : block.run->options.seed == 1 ? count - 1 : 0;
    const size_t step = block.run->options.seed == 1 || (random && dice.roll(2)) ? count - 1 : 1;
    for (size_t n = 0; n < count; n++) {
      Warp& w = block.warps[(first + n * step) % count];
      if (w.splits.empty()) continue;
      any = true;
      if (w.waits_at >= 0) continue;
      progress = true;
      s64 part = std::max<s64>(budget / s64(count), 2000);
      const s64 before = part;
      w.yielded = false;
      const Stop stop = softgpu::run(w, part, random ? 1 + dice.roll(150) : ~0ull);
      budget -= before - part;
      polls_only &= w.yielded;
      if (stop == Stop::Done) {
        block.live_warps--;
        for (int id = 0; id < 16; id++)
          if (!block.barriers[id].expected) release_if_full(block, id);
      }
    }
    if (!any) {
      if (Watcher* watcher = block.watcher()) watcher->ends(block);
      return Outcome::Done;
    }
    if (!progress) all_wait(block);
    if (polls_only) return Outcome::Waits;
    if (budget < 0 || (random && dice.roll(40) == 0)) return Outcome::Busy;
  }
}

}  // namespace softgpu
