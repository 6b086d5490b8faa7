// Lanes of a warp: they diverge at branches and meet again, the lowest place in the code first.
// PTX ISA, "Predicated Execution", "Divergence of Threads in Control Constructs", "Control Flow Instructions".
#include <algorithm>
#include <cstdio>

#include "watcher.h"

namespace softgpu {
namespace {

// What an instruction did to the split that runs: it goes on, another one is to be chosen, or the warp rests.
enum class After { GoOn, Choose, Rest };

class Runner {
 public:
  Runner(Warp& w, s64& budget, u64 until) : w_(w), code_(w.program->code.data()), watcher_(w.block->watcher()), budget_(budget), until_(until) {}

  Stop run() {
    for (;;) {
      if (w_.splits.empty()) return Stop::Done;
      choose();
      After after;
      do after = pc_ == meet_ ? leave_at(pc_) : step();
      while (after == After::GoOn);
      if (after == After::Rest) return w_.waits_at >= 0 ? Stop::Waiting : Stop::Spent;
    }
  }

 private:
  Warp& w_;
  const Instruction* code_;
  Watcher* watcher_;
  s64& budget_;
  u64 until_;
  size_t chosen_ = 0;
  u32 pc_ = 0, mask_ = 0, meet_ = ~0u;  // meet_: the next place where others of the warp stand

  Split& split() { return w_.splits[chosen_]; }
  After leave_at(u32 pc, After after = After::Choose) {
    split().pc = pc;
    return after;
  }

  void merge_equal() {
    auto& s = w_.splits;
    for (size_t a = 0; a < s.size(); a++)
      for (size_t b = a + 1; b < s.size();)
        if (s[a].pc == s[b].pc) {
          s[a].mask |= s[b].mask;
          s[a].blocked = false;
          s.erase(s.begin() + b);
        } else {
          b++;
        }
  }

  void choose() {
    auto& splits = w_.splits;
    if (splits.size() > 1) merge_equal();
    size_t open = 0;
    chosen_ = splits.size();
    for (size_t s = 0; s < splits.size(); s++) {
      if (splits[s].blocked) continue;
      open++;
      if (chosen_ == splits.size() || splits[s].pc < splits[chosen_].pc) chosen_ = s;
    }
    if (!open) stuck();
    if (open > 1 && w_.turn) take_turns(open);  // a spinning split has to let others go on
    pc_ = split().pc, mask_ = split().mask, meet_ = ~0u;
    for (auto& s : splits)
      if (s.pc > pc_) meet_ = std::min(meet_, s.pc);
  }

  void take_turns(size_t open) {
    size_t skip = w_.turn % open;
    for (size_t s = 0; s < w_.splits.size(); s++)
      if (!w_.splits[s].blocked && skip-- == 0) {
        chosen_ = s;
        return;
      }
  }

  [[noreturn]] void stuck() {
    std::string at;
    for (auto& s : w_.splits) {
      char lanes[24];
      std::snprintf(lanes, sizeof lanes, "\n  lanes %08x", s.mask);
      at += lanes + place_of(*w_.program, code_[s.pc]);
    }
    const Split& first = w_.splits[0];
    fault(w_, code_[first.pc], __builtin_ctz(first.mask), HUNG, "lanes of one warp wait at different places for each other" + at);
  }

  After step() {
    const Instruction& i = code_[pc_];
    w_.pc = pc_;
    u32 m = mask_;
    if (i.guard >= 0) {
      const u32 p = *w_.at<u32>(i.guard);
      m &= i.guard_negated ? ~p : p;
    }
    if (watcher_ && m) watcher_->executes(w_, i, m);
    if (i.flow != Flow::Plain) return flow(i, m);
    if (m) i.run(w_, i, m);
    pc_++;
    return --until_ ? After::GoOn : leave_at(pc_, After::Rest);
  }

  After flow(const Instruction& i, u32 m) {
    budget_--;
    switch (i.flow) {
      case Flow::Branch: return branch(i, m);
      case Flow::BranchTable: return branch_by_table(i, m);
      case Flow::Exit: return exit(m);
      case Flow::WarpSync: return together(i, m);
      case Flow::Yield: w_.yielded = true, w_.turn++; return leave_at(pc_ + 1, After::Rest);
      default: return barrier(i, m);
    }
  }

  After branch(const Instruction& i, u32 m) {
    if (!m) {
      pc_++;
      return After::GoOn;
    }
    if (m != mask_) {
      split() = {pc_ + 1, mask_ & ~m, false};
      w_.splits.push_back({i.target, m, false});
      return After::Choose;
    }
    const bool back = i.target <= pc_;
    pc_ = i.target;
    if (back && w_.polls) {  // it looked at a flag, and will look again: others first
      w_.polls = 0, w_.turn++, w_.yielded = true;
      return leave_at(pc_, After::Rest);
    }
    if (budget_ < 0) {
      w_.turn++;
      return leave_at(pc_, After::Rest);
    }
    return w_.splits.size() == 1 ? After::GoOn : leave_at(pc_);
  }

  After branch_by_table(const Instruction& i, u32 m) {
    const u32* index = w_.at<u32>(i.o[0]);
    const u32 stay = mask_ & ~m, here = pc_;
    w_.splits.erase(w_.splits.begin() + chosen_);
    if (stay) w_.splits.push_back({here + 1, stay, false});
    for (u32 rest = m; rest; rest &= rest - 1) {
      const int lane = __builtin_ctz(rest);
      if (index[lane] >= i.table->size()) fault(w_, i, lane, ILLEGAL_INSTRUCTION, "brx.idx beyond its table");
      w_.splits.push_back({(*i.table)[index[lane]], 1u << lane, false});
    }
    return After::Choose;
  }

  After exit(u32 m) {
    if (watcher_) watcher_->exits(w_, m);
    w_.live &= ~m;
    for (auto& s : w_.splits) s.blocked = false;  // whoever waits for these lanes need not any longer
    for (const AsyncCopy& c : w_.copies)
      if (w_.block->run->options.alone && c.mask & m)
        fault(w_, *c.by, __builtin_ctz(c.mask & m), LAUNCH_FAILED, "the thread exits with a cp.async that it never waited for");
    if (!w_.copies.empty()) finish_copies(w_, m, -1);
    w_.block->run->progress++;
    split() = {pc_ + 1, mask_ & ~m, false};
    if (!split().mask) w_.splits.erase(w_.splits.begin() + chosen_);
    return After::Choose;
  }

  // The lanes that each names in its mask have to come before a warp-wide instruction can be done.
  bool all_here(const Instruction& i, u32 m) const {
    if (i.aligned) return m == w_.live;
    const u32* members = w_.at<u32>(i.a);
    for (u32 rest = m; rest; rest &= rest - 1)
      if (members[__builtin_ctz(rest)] & w_.live & ~m) return false;
    return true;
  }

  After together(const Instruction& i, u32 m) {
    if (m && !all_here(i, m)) {
      if (m == mask_) {
        split() = {pc_, mask_, true};
      } else {
        split() = {pc_ + 1, mask_ & ~m, false};
        w_.splits.push_back({pc_, m, true});
      }
      return After::Choose;
    }
    if (m) i.run(w_, i, m);
    pc_++;
    return After::GoOn;
  }

  After barrier(const Instruction& i, u32 m) {
    if (!m) {
      pc_++;
      return After::GoOn;
    }
    if (m != w_.live) {
      if (m != mask_) fault(w_, i, __builtin_ctz(m), HUNG, "a barrier under a condition that not all lanes of the warp meet");
      split() = {pc_, mask_, true};
      return After::Choose;
    }
    split().pc = pc_ + 1;
    arrive(w_, i, m, i.flow == Flow::Barrier);
    if (w_.waits_at >= 0) return After::Rest;
    pc_++;
    return After::GoOn;
  }
};

}  // namespace

Stop run(Warp& w, s64& budget, u64 until) { return Runner(w, budget, until).run(); }

}  // namespace softgpu
