// What the checker keeps of a block and of its warps.
#pragma once
#include <map>

#include "clocks.h"
#include "shadow.h"
#include "../machine/warp.h"

namespace softgpu {

constexpr int SCOPES = 3;

struct WarpState {
  u32 clock = 1;  // of all its lanes; a release makes it tick
  VectorClock known[LANES];
  const u32* own[LANES] = {};  // known, of the own block
  VectorClock at_fence[LANES][SCOPES];   // what a relaxed store publishes: known at the last fence of that scope
  VectorClock collected[LANES][SCOPES];  // seen by relaxed loads; known after the next fence of that scope

  void refresh(u64 block, u32 mask) {
    for (u32 rest = mask; rest; rest &= rest - 1) {
      const int l = __builtin_ctz(rest);
      own[l] = known[l].of(block);
    }
  }
};

struct BlockState {
  std::vector<WarpState> warps;
  Shadow shared;
  std::map<u32, u32> red_zones;  // from, bytes
  u32 exited = 0;
  VectorClock at_exit;
  std::vector<VectorClock::Stamp> exits;
};

inline WarpState& state_of(Warp& w) { return *static_cast<WarpState*>(w.watched); }
inline u32 threads_of(const Block& b) { return b.warps.size() * LANES; }

// What a lane makes known when it releases.
inline VectorClock publish(Warp& w, int lane) {
  WarpState& s = state_of(w);
  VectorClock known = s.known[lane];
  known.stamp(w.block->id, {{w.number, 1u << lane, s.clock++}}, threads_of(*w.block));
  return known;
}

}  // namespace softgpu
