// Vector clocks: what a thread knows to have happened before. Used by the checker only.
#pragma once
#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

namespace simt {

using ThreadClock = std::pair<int, uint32_t>;  // a thread of a block, and its own clock

// block -> the clock of each of its threads. Shared and copied on write at both levels: after a barrier all
// threads of a block hold the same one, and joining it again is a comparison of pointers.
class VectorClock {
  using Clocks = std::vector<uint32_t>;
  using Blocks = std::map<uint32_t, std::shared_ptr<const Clocks>>;
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
  // Did everything up to `clock` of that thread happen before?
  bool covers(uint32_t block, uint32_t thread, uint32_t clock) const {
    if (!blocks_) return false;
    const auto it = blocks_->find(block);
    return it != blocks_->end() && (*it->second)[thread] >= clock;
  }

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

  // Publish the own clocks of some threads of a block that has `threads` of them.
  void stamp(uint32_t block, const std::vector<ThreadClock>& own, int threads) {
    auto blocks = blocks_ ? std::make_shared<Blocks>(*blocks_) : std::make_shared<Blocks>();
    auto& slot = (*blocks)[block];
    auto clocks = slot ? std::make_shared<Clocks>(*slot) : std::make_shared<Clocks>(threads);
    for (const auto& [thread, clock] : own) (*clocks)[thread] = clock;
    slot = clocks;
    blocks_ = blocks;
  }
};

}  // namespace simt
