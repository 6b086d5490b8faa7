// Counts what a launch does: instructions by opcode, bytes and sectors of global memory, passes through shared memory.
#pragma once
#include <set>

#include "watcher.h"

namespace softgpu {

// Global memory moves in sectors of 32 bytes, shared memory in passes of 32 banks of 4 bytes.
class Counter : public Watcher {
 public:
  void executes(Warp&, const Instruction&, u32 mask) override;
  void accesses(Warp&, const Instruction&, u32 mask, u8* const* host, u32 bytes, const Access& access) override;
  void issues(Warp&, const Instruction&, u32 mask, u8* const* target, u32 bytes) override;
  void prefetches(Warp&, u32 mask, u8* const* host, const u32* bytes) override;
  std::string json(const Grid& grid) const;  // one line

 private:
  struct Traffic {
    u64 accesses = 0, bytes = 0, sectors = 0, least_sectors = 0;
  };
  struct Passes {
    u64 accesses = 0, passes = 0, least_passes = 0;
    void operator+=(const Passes& other) { accesses += other.accesses, passes += other.passes, least_passes += other.least_passes; }
  };
  std::map<const Statement*, u64> executed_;  // warps
  Traffic loads_, stores_;
  Passes shared_loads_, shared_stores_;
  std::map<std::pair<const Program*, const Instruction*>, Passes> by_place_;  // the same, of each instruction
  u64 atomics_ = 0;  // lanes
  u64 prefetches_ = 0;
  std::set<u64> prefetched_;  // lines of 128 bytes

  static bool is_shared(const Warp& w, const u8* at) { return u64(at - w.block->shared.data()) < w.block->shared.size(); }
  void shared(Passes& p, const Warp& w, const Instruction& i, u32 mask, u8* const* host, u32 bytes);
  void global(Traffic& t, u32 mask, u8* const* host, u32 bytes);
};

}  // namespace softgpu
