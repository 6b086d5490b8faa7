// Blocks of grids. A block that waits for others is set aside, and the next ones run beside it, as many as a GPU holds.
#include "launch.h"

#include <algorithm>
#include <cstdio>
#include <deque>
#include <numeric>

#include "rest.h"
#include "settings.h"
#include "watcher.h"

namespace softgpu {
namespace {

// Blocks of launches that have ended. Their memory is taken again: a kernel that keeps 264 blocks alive would otherwise
// ask the system for tens of MB at each launch, which takes longer than many a kernel.
class Store {
 public:
  std::unique_ptr<Block> take() {
    if (blocks_.empty()) return std::make_unique<Block>();
    auto block = std::move(blocks_.back());
    blocks_.pop_back();
    bytes_ -= bytes_of(*block);
    block->grid = nullptr;
    return block;
  }
  void keep(std::unique_ptr<Block> block) {
    if (bytes_ + bytes_of(*block) > MOST_BYTES) return;
    bytes_ += bytes_of(*block);
    blocks_.push_back(std::move(block));
  }

 private:
  static constexpr size_t MOST_BYTES = 64 << 20;
  static size_t bytes_of(const Block& b) { return b.registers.capacity() + b.shared.capacity() + b.local.capacity(); }
  std::vector<std::unique_ptr<Block>> blocks_;
  size_t bytes_ = 0;
};
thread_local Store store;

class Launcher {
 public:
  Launcher(const std::vector<Grid>& grids, const Options& options, size_t first)
      : grids_(grids), options_(options), run_{options, {u64(options.seed) * 0x9e3779b97f4a7c15 + 88172645463325252}}, left_(grids.size()), first_id_(grids.size()) {
    u64 id = 0;
    for (size_t g = 0; g < grids.size(); g++) {
      first_id_[g] = id;
      id += left_[g] = grids[g].blocks();
    }
    for (size_t g = 0; g < grids.size(); g++)
      if (g >= first && grids[g].after < int(first)) enqueue(g);
    order_all();
    most_ = options.most_resident ? options.most_resident : u64(settings().sms) * 2 * grids.size();
  }

  void run() {
    while (!queue_.empty() || !resident_.empty()) {
      std::unique_ptr<Block> block = next();
      const u64 before = run_.progress;
      const Outcome outcome = softgpu::run(*block, SLICE);
      if (outcome == Outcome::Done) {
        idle_ = 0;
        finish(std::move(block));
      } else {
        idle_ = outcome == Outcome::Waits && run_.progress == before ? idle_ + 1 : 0;
        watch_for_hang(*block);
        if (options_.timeout_s && nanoseconds() - began_ > u64(options_.timeout_s) * 1000000000) hangs(*block, "watchdog: the launch takes too long");
        resident_.insert(resident_.begin() + std::min(turn_, resident_.size()), std::move(block));
        turn_++;
      }
    }
  }

 private:
  static constexpr s64 SLICE = 200000;
  const std::vector<Grid>& grids_;
  const Options& options_;
  Run run_;
  std::vector<u64> left_, first_id_;                     // blocks of each grid that have not ended
  std::deque<std::pair<size_t, u64>> queue_;             // grid and block, in the order in which they start
  std::vector<std::unique_ptr<Block>> resident_, spare_;
  u64 most_ = 0;
  size_t turn_ = 0;
  u64 idle_ = 0;  // blocks in a row that did nothing but look at flags
  u64 began_ = nanoseconds();

  void enqueue(size_t g) {
    const size_t from = queue_.size();
    for (u64 n = 0; n < grids_[g].blocks(); n++) queue_.push_back({g, n});
    order(from);
  }
  void order_all() { order(0); }
  void order(size_t from) {
    if (options_.seed == 1) std::reverse(queue_.begin() + from, queue_.end());
    if (run_.random())
      for (size_t n = queue_.size(); n > from + 1; n--) std::swap(queue_[n - 1], queue_[from + run_.dice.roll(n - from)]);
  }

  std::unique_ptr<Block> next() {
    const bool room = !queue_.empty() && resident_.size() < most_;
    if (room && (!run_.random() || resident_.empty() || run_.dice.roll(3))) return begin();
    turn_ = run_.random() ? run_.dice.roll(resident_.size()) : turn_ % resident_.size();
    auto block = std::move(resident_[turn_]);
    resident_.erase(resident_.begin() + turn_);
    if (!options_.alone && (resident_.empty() || turn_ == 0)) rest(idle_ / (resident_.size() + 1));  // others write the flags
    return block;
  }

  std::unique_ptr<Block> begin() {
    const auto [g, number] = queue_.front();
    queue_.pop_front();
    std::unique_ptr<Block> block;
    const auto same = std::find_if(spare_.begin(), spare_.end(), [&, g = g](auto& b) { return b->grid == &grids_[g]; });
    if (same != spare_.end()) {
      block = std::move(*same);
      spare_.erase(same);
    } else {
      block = store.take();
    }
    block->grid_number = g, block->id = first_id_[g] + number;
    start(*block, run_, grids_[g], number);
    return block;
  }

  void finish(std::unique_ptr<Block> block) {
    const size_t g = block->grid_number;
    spare_.push_back(std::move(block));
    if (--left_[g]) return;
    for (auto& b : spare_)
      if (b->grid_number == g) store.keep(std::move(b));
    std::erase(spare_, nullptr);
    for (size_t other = 0; other < grids_.size(); other++)
      if (grids_[other].after == int(g)) enqueue(other);
  }

  // If every block looks at flags that nobody is left to write, the kernel hangs.
  void watch_for_hang(Block& block) {
    if (options_.alone && idle_ > 200000 + 1000 * resident_.size())
      hangs(block, "livelock: only threads that look at flags again and again are left");
  }

  [[noreturn]] void hangs(Block& block, const std::string& what) {
    std::string others;
    for (size_t n = 0; n < std::min<size_t>(resident_.size(), 8); n++) {
      const Block& b = *resident_[n];
      for (const Warp& w : b.warps)
        if (!w.splits.empty()) {
          others += "\n  block (" + std::to_string(b.at.x) + ", " + std::to_string(b.at.y) + ", " + std::to_string(b.at.z) + ")" +
                    place_of(*w.program, w.program->code[w.splits[0].pc]);
          break;
        }
    }
    for (Warp& w : block.warps)
      if (!w.splits.empty() && w.waits_at < 0)
        fault(w, w.program->code[w.splits[0].pc], __builtin_ctz(w.splits[0].mask), HUNG, what + others);
    throw Fault(HUNG, "softgpu: " + what + others);
  }
};

}  // namespace

void launch(const std::vector<Grid>& grids, const Options& options, size_t first) {
  const u64 began = nanoseconds();
  Launcher(grids, options, first).run();
  if (!settings().trace) return;
  for (size_t n = first; n < grids.size(); n++) {
    const Grid& g = grids[n];
    std::fprintf(stderr, "softgpu: %s grid (%u, %u, %u) block (%u, %u, %u) smem %u: %.3f ms\n", g.program->name.c_str(), g.grid.x, g.grid.y,
                 g.grid.z, g.block.x, g.block.y, g.block.z, g.dynamic_shared, (nanoseconds() - began) / 1e6);
  }
}

}  // namespace softgpu
