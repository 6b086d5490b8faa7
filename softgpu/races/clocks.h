// Vector clocks: what a thread knows to have happened before.
#pragma once
#include <algorithm>
#include <map>
#include <memory>
#include <vector>

#include "../ptx/text.h"

namespace softgpu {

// block -> the clock of each of its threads. Shared and copied on write at both levels: after a barrier all threads of a
// block hold the same one, and joining it again is a comparison of pointers.
class VectorClock {
  using Clocks = std::vector<u32>;
  using Blocks = std::map<u64, std::shared_ptr<const Clocks>>;
  std::shared_ptr<const Blocks> blocks_;

  static bool covers(const Clocks& a, const Clocks& b) {
    for (size_t i = 0; i < b.size(); i++)
      if (a[i] < b[i]) return false;
    return true;
  }
  static std::shared_ptr<const Clocks> maximum(const Clocks* a, const Clocks& b) {
    auto both = std::make_shared<Clocks>(b);
    for (size_t i = 0; a && i < b.size(); i++) (*both)[i] = std::max(b[i], (*a)[i]);
    return both;
  }

 public:
  // The clocks of a block's threads, or null.
  const u32* of(u64 block) const {
    if (!blocks_) return nullptr;
    const auto it = blocks_->find(block);
    return it == blocks_->end() ? nullptr : it->second->data();
  }
  bool same_as(const VectorClock& other) const { return blocks_ == other.blocks_; }

  // Learn all that `other` knows.
  void join(const VectorClock& other) {
    if (!other.blocks_ || other.blocks_ == blocks_) return;
    if (!blocks_) {
      blocks_ = other.blocks_;
      return;
    }
    std::shared_ptr<Blocks> joined;  // made at the first difference
    for (const auto& [block, theirs] : *other.blocks_) {
      const auto it = blocks_->find(block);
      const Clocks* ours = it == blocks_->end() ? nullptr : it->second.get();
      if (ours == theirs.get() || (ours && covers(*ours, *theirs))) continue;
      if (!joined) joined = std::make_shared<Blocks>(*blocks_);
      (*joined)[block] = maximum(ours, *theirs);
    }
    if (joined) blocks_ = joined;
  }

  // Publish the clock of some threads of a block that has `threads` of them.
  struct Stamp {
    u32 warp, mask, clock;
  };
  void stamp(u64 block, const std::vector<Stamp>& own, u32 threads) {
    auto blocks = blocks_ ? std::make_shared<Blocks>(*blocks_) : std::make_shared<Blocks>();
    auto& slot = (*blocks)[block];
    auto clocks = slot ? std::make_shared<Clocks>(*slot) : std::make_shared<Clocks>(threads);
    for (const Stamp& s : own)
      for (u32 rest = s.mask; rest; rest &= rest - 1) (*clocks)[s.warp * 32 + __builtin_ctz(rest)] = s.clock;
    slot = clocks;
    blocks_ = blocks;
  }
};

}  // namespace softgpu
