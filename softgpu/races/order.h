// PTX ISA, "Memory Consistency Model": what a strong write makes known, and what a strong read learns of it.
#pragma once
#include "state.h"

namespace softgpu {

class Order {
 public:
  // A fence of a scope orders what came before it for the relaxed writes behind it, and learns for the relaxed reads before.
  void fence(Warp& w, u32 mask, Scope scope) {
    WarpState& s = state_of(w);
    for (u32 rest = mask; rest; rest &= rest - 1) {
      const int l = __builtin_ctz(rest);
      for (int n = 0; n <= int(scope); n++) s.known[l].join(s.collected[l][n]);
      const VectorClock now = publish(w, l);
      for (int n = 0; n <= int(scope); n++) s.at_fence[l][n] = now;
    }
    s.refresh(w.block->id, mask);
  }

  void read(Warp& w, int lane, const u8* at, const Access& access) {
    const auto found = published_.find(at);
    if (found == published_.end()) return;
    const int needed = int(distance(*w.block, found->second));
    WarpState& s = state_of(w);
    (access.acquire ? s.known[lane] : s.collected[lane][needed]).join(found->second.by_scope[needed]);
    if (access.acquire) s.refresh(w.block->id, 1u << lane);
  }

  void write(Warp& w, int lane, const u8* at, const Access& access) {
    Published& p = published_[at];
    const bool modifies = access.kind == AccessKind::AtomicModify;
    const bool same_block = p.block == w.block->id && p.device == w.block->grid->device;
    const VectorClock now = access.release ? publish(w, lane) : VectorClock();
    for (int n = 0; n < SCOPES; n++) {
      const bool kept = modifies && (n > 0 || same_block);  // a release sequence goes on through atomics
      if (!kept) p.by_scope[n] = VectorClock();
      if (n <= int(access.scope)) p.by_scope[n].join(access.release ? now : state_of(w).at_fence[lane][n]);
    }
    p.block = w.block->id, p.device = w.block->grid->device;
  }

 private:
  struct Published {
    VectorClock by_scope[SCOPES];
    u64 block = 0;
    int device = 0;
  };
  std::unordered_map<const u8*, Published> published_;

  static Scope distance(const Block& b, const Published& p) {
    return b.id == p.block ? Scope::Cta : b.grid->device == p.device ? Scope::Gpu : Scope::Sys;
  }
};

}  // namespace softgpu
