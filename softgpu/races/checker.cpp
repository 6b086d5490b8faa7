#include "checker.h"

#include <unordered_map>

#include "../machine/memory.h"
#include "order.h"

namespace softgpu {
namespace {

class Checker : public Watcher {
 public:
  Checker(const std::vector<Grid>& grids, bool grows) : grids_(grids), overlaps_(grows) { count_grids(); }

  void begins(Block& b) override {
    count_grids();
    auto& slot = blocks_[&b];
    slot = std::make_unique<BlockState>();
    slot->warps.resize(b.warps.size());
    paint(b, b.shared.size() - b.grid->red_zones, b.grid->red_zones, true);
    for (Warp& w : b.warps) {
      w.watched = &slot->warps[w.number];
      for (auto& known : state_of(w).known) known = at_start(b.grid_number);
    }
  }

  void ends(Block& b) override {
    BlockState& s = *blocks_[&b];
    s.at_exit.stamp(b.id, s.exits, threads_of(b));
    ended_[b.grid_number].join(s.at_exit);
    blocks_.erase(&b);
  }

  void exits(Warp& w, u32 mask) override {
    BlockState& b = *blocks_[w.block];
    WarpState& s = state_of(w);
    b.exited += __builtin_popcount(mask);
    b.exits.push_back({w.number, mask, s.clock});
    for (u32 rest = mask; rest; rest &= rest - 1) b.at_exit.join(s.known[__builtin_ctz(rest)]);
  }

  void accesses(Warp& w, const Instruction& i, u32 mask, u8* const* host, u32 bytes, const Access& access) override {
    for (u32 rest = mask; rest; rest &= rest - 1) {
      const int l = __builtin_ctz(rest);
      touch({w, i, l, host[l], bytes, access});
      if (!access.atomic()) continue;
      if (access.kind != AccessKind::AtomicWrite) order_.read(w, l, host[l], access);
      if (access.kind != AccessKind::AtomicRead) order_.write(w, l, host[l], access);
    }
  }

  void issues(Warp& w, const Instruction& i, u32 mask, u8* const* target, u32 bytes) override {
    const Access write{AccessKind::Write};
    for (u32 rest = mask; rest; rest &= rest - 1) {
      const int l = __builtin_ctz(rest);
      touch({w, i, l, target[l], bytes, write});
      for_cells(w, target[l], bytes, [](Cell& c) { c.flags |= IN_FLIGHT; });
    }
  }
  void lands(Warp& w, u32, u8* target, u32 bytes) override {
    for_cells(w, target, bytes, [&](Cell& c) {
      c.flags = (c.flags | INITIALISED) & ~IN_FLIGHT;
      c.write_clock = state_of(w).clock;
    });
  }

  void fences(Warp& w, u32 mask, Scope scope) override { order_.fence(w, mask, scope); }

  void waits(Warp& w, u32 mask) override {
    const int before = w.block->grid->after;
    if (before < 0) return;
    WarpState& s = state_of(w);
    for (u32 rest = mask; rest; rest &= rest - 1) s.known[__builtin_ctz(rest)].join(ended_[before]);
    s.refresh(w.block->id, mask);
  }

  void meets(Warp& w, const Instruction&, u32 mask) override {
    WarpState& s = state_of(w);
    VectorClock all;
    for (u32 rest = mask; rest; rest &= rest - 1) all.join(s.known[__builtin_ctz(rest)]);
    all.stamp(w.block->id, {{w.number, mask, s.clock++}}, threads_of(*w.block));
    for (u32 rest = mask; rest; rest &= rest - 1) s.known[__builtin_ctz(rest)] = all;
    s.refresh(w.block->id, mask);
  }

  // Each zone pushes what lies behind it further out, and so the end of what the launch has asked for.
  void forbids(Warp& w, u32 from, u32 bytes) override {
    BlockState& s = *blocks_[w.block];
    if (!s.red_zones.emplace(from, bytes).second) return;  // another warp was first
    u32 end = w.block->shared.size() - w.block->grid->red_zones;
    for (auto& zone : s.red_zones) end += zone.second;
    const u32 behind = std::max(end - bytes, from + bytes);
    if (behind < end) paint(*w.block, behind, end - behind, false);
    paint(*w.block, from, bytes, true);
  }

  void arrives(Warp& w, const Instruction& i, u32 mask, Barrier&, bool counts_all) override {
    if (counts_all) all_are_alive(w, i, mask);
  }

  void releases(Block& b, Barrier& barrier) override {
    if (!barrier.expected) {
      Warp& w = *barrier.came[0].first;
      all_are_alive(w, w.program->code[w.pc], barrier.came[0].second);
    }
    VectorClock all;
    std::vector<VectorClock::Stamp> stamps;
    for (auto& [w, mask] : barrier.came) {
      WarpState& s = state_of(*w);
      for (u32 rest = mask; rest; rest &= rest - 1) all.join(s.known[__builtin_ctz(rest)]);
      stamps.push_back({w->number, mask, s.clock++});
    }
    all.stamp(b.id, stamps, threads_of(b));
    for (Warp* w : barrier.waiting) {
      for (auto& known : state_of(*w).known) known = all;
      state_of(*w).refresh(b.id, ALL);
    }
  }

 private:
  struct Touch {
    Warp& w;
    const Instruction& i;
    int lane;
    u8* at;
    u32 bytes;
    const Access& access;
  };

  const std::vector<Grid>& grids_;
  std::vector<u64> first_id_;
  std::vector<VectorClock> ended_;  // what the threads of a grid knew at their ends
  std::unordered_map<const Block*, std::unique_ptr<BlockState>> blocks_;
  Shadow global_;
  Readers readers_;
  Order order_;
  u64 ids_ = 0;
  bool overlaps_;  // a grid may run beside the one before it

  void count_grids() {
    while (first_id_.size() < grids_.size()) {
      const Grid& g = grids_[first_id_.size()];
      first_id_.push_back(ids_), ids_ += g.blocks();
      ended_.emplace_back();
      overlaps_ |= g.early;
    }
  }
  // What a grid may rely on when it starts. One that is launched early starts, in the worst case, with the grid before it:
  // each of a chain tells the next to start, and has itself not waited yet.
  VectorClock at_start(size_t g) const {
    const int before = grids_[g].after;
    if (before < 0) return {};
    return grids_[g].early ? at_start(before) : ended_[before];
  }

  // Whether a barrier waits for threads that have ended is not defined.
  void all_are_alive(Warp& w, const Instruction& i, u32 mask) {
    const u32 exited = blocks_[w.block]->exited;
    if (!exited) return;
    fault(w, i, __builtin_ctz(mask), HUNG, "a barrier for all threads of the block, of which " + std::to_string(exited) + " have ended");
  }

  static bool is_shared(const Warp& w, const u8* at) { return u64(at - w.block->shared.data()) < w.block->shared.size(); }
  static bool is_private(const Warp& w, const u8* at) {
    const auto& local = w.block->local;
    const auto& parameters = w.block->grid->parameters;
    return u64(at - local.data()) < local.size() || u64(at - parameters.data()) < parameters.size();
  }

  template <class F>
  void for_cells(Warp& w, u8* at, u32 bytes, F f) {
    const bool shared = is_shared(w, at);
    const u64 address = shared ? at - w.block->shared.data() : u64(at);
    Chunk& chunk = shared ? blocks_[w.block]->shared.chunk(address) : global_.chunk(address);
    auto [first, last] = chunk.cells(address % Chunk::BYTES, bytes, readers_);
    for (Cell* c = first; c != last; c++) f(*c);
  }

  // Makes bytes of shared memory a red zone, or none; whole words only, so that cells need not become smaller.
  void paint(Block& b, u32 from, u32 bytes, bool red) {
    for (u32 at = (from + 3) / 4 * 4; at + 4 <= from + bytes && at + 4 <= b.shared.size(); at += 4) {
      auto [first, last] = blocks_[&b]->shared.chunk(at).cells(at % Chunk::BYTES, 4, readers_);
      for (Cell* c = first; c != last; c++) c->flags = red ? c->flags | RED : c->flags & ~RED;
    }
  }

  void touch(const Touch& t) {
    if (is_private(t.w, t.at)) return;
    const bool shared = is_shared(t.w, t.at);
    for_cells(t.w, t.at, t.bytes, [&](Cell& c) {
      if (c.flags & RED) complain(t, "in the red zone behind an array", ~0u);
      if (c.flags & IN_FLIGHT) complain(t, "access while a cp.async into it is in flight (not waited for)", c.write_pc);
      if (shared && !t.access.writes() && !(c.flags & INITIALISED)) complain(t, "uninitialized read", ~0u);
      if (t.access.kind == AccessKind::ReadOnly) {
        read_only(t, c);
        if (!overlaps_) return;
      }
      if (c.write_clock && !(t.access.atomic() && (c.flags & ATOMIC) && strong(t, c.writer_block, c.scope)) &&
          !before(t, c.writer_block, c.writer_thread, c.write_clock))
        complain(t, "race: not ordered after the write by " + thread_name(c.writer_block, c.writer_thread), c.write_pc, c.writer_block);
      if (t.access.writes()) write(t, c);
      else read(t, c);
    });
  }

  // Two strong accesses do not race if the scope of each holds the thread of the other.
  bool strong(const Touch& t, u64 block, Scope scope) const {
    const Block& own = *t.w.block;
    const Scope needed = block == own.id ? Scope::Cta : device_of(block) == own.grid->device ? Scope::Gpu : Scope::Sys;
    return scope >= needed && t.access.scope >= needed;
  }
  int device_of(u64 block) const {
    size_t g = grids_.size() - 1;
    while (first_id_[g] > block) g--;
    return grids_[g].device;
  }

  bool before(const Touch& t, u64 block, u32 thread, u32 clock) const {
    WarpState& s = state_of(t.w);
    if (block != t.w.block->id) {
      const u32* theirs = s.known[t.lane].of(block);
      return theirs && theirs[thread] >= clock;
    }
    if (thread == t.w.number * LANES + t.lane) return true;
    return s.own[t.lane] && s.own[t.lane][thread] >= clock;
  }
  bool before(const Touch& t, const Reader& r) const {
    for (u32 rest = r.mask; rest; rest &= rest - 1)
      if (!before(t, r.block, r.warp * LANES + __builtin_ctz(rest), r.clock)) return false;
    return true;
  }

  // ld.global.nc promises that nobody writes there while the kernel runs.
  void read_only(const Touch& t, Cell& c) {
    if (c.write_clock && device_of(c.writer_block) == t.w.block->grid->device && grids_of(c.writer_block) == t.w.block->grid_number)
      complain(t, "race: read by way of the read-only cache, and written in this kernel", c.write_pc);
    c.flags |= READ_ONLY;
  }
  u64 grids_of(u64 block) const {
    size_t g = grids_.size() - 1;
    while (first_id_[g] > block) g--;
    return g;
  }

  void write(const Touch& t, Cell& c) {
    for (; c.readers >= 0; c.readers = readers_.drop(c.readers)) {
      const Reader& r = readers_[c.readers];
      if (t.access.atomic() && r.atomic && strong(t, r.block, r.scope)) continue;
      if (!before(t, r)) complain(t, "race: not ordered after a read by " + thread_name(r.block, r.warp * LANES + __builtin_ctz(r.mask)), r.pc, r.block);
    }
    c.writer_block = t.w.block->id, c.writer_thread = t.w.number * LANES + t.lane;
    c.write_clock = state_of(t.w).clock, c.write_pc = t.w.pc;
    c.flags = INITIALISED | (t.access.atomic() ? ATOMIC : 0) | (c.flags & READ_ONLY);
    c.scope = t.access.scope;
    if (c.flags & READ_ONLY && t.w.block->grid->after < 0) complain(t, "race: written, and read in this kernel by way of the read-only cache", ~0u);
  }

  void read(const Touch& t, Cell& c) {
    const u32 clock = state_of(t.w).clock;
    if (c.readers >= 0) {
      Reader& r = readers_[c.readers];
      if (r.block == t.w.block->id && r.warp == t.w.number && r.clock == clock && r.atomic == t.access.atomic()) {
        r.mask |= 1u << t.lane;
        return;
      }
      if (before(t, r)) c.readers = readers_.drop(c.readers);
    }
    c.readers = readers_.add({t.w.block->id, t.w.number, 1u << t.lane, clock, t.w.pc, t.access.atomic(), t.access.scope, c.readers});
  }

  std::string thread_name(u64 block, u32 thread) const {
    const u64 g = grids_of(block);
    return "thread " + std::to_string(thread) + " of block " + std::to_string(block - first_id_[g]) +
           (grids_.size() > 1 ? " of launch " + std::to_string(g) : "");
  }

  static std::string global_name(const u8* at) {
    Allocation a;
    if (!memory::find(u64(at), &a)) return "global memory";
    return "global memory at byte " + std::to_string(u64(at) - a.begin) + " of an allocation of " + std::to_string(a.end - a.begin);
  }

  [[noreturn]] void complain(const Touch& t, const std::string& what, u32 other_pc) const { complain(t, what, other_pc, t.w.block->id); }
  [[noreturn]] void complain(const Touch& t, const std::string& what, u32 other_pc, u64 other_block) const {
    const Program& other = *grids_[grids_of(other_block)].program;
    const bool shared = is_shared(t.w, t.at);
    const std::string where = shared ? "shared memory at byte " + std::to_string(t.at - t.w.block->shared.data()) : global_name(t.at);
    std::string text = std::string(t.access.atomic() ? "atomic access to " : t.access.writes() ? "write to " : "read of ") + where + ": " + what;
    if (grids_of(other_block) != t.w.block->grid_number && t.w.block->grid->early)
      text += ", a launch that may still run: this kernel was launched to start early (griddepcontrol.wait comes before)";
    if (other_pc != ~0u && other_pc < other.code.size()) text += "\n  the other:" + place_of(other, other.code[other_pc]) + "\n  this one:";
    fault(t.w, t.i, t.lane, LAUNCH_FAILED, text);
  }
};

}  // namespace

std::unique_ptr<Watcher> new_checker(const std::vector<Grid>& grids, bool grows) { return std::make_unique<Checker>(grids, grows); }

}  // namespace softgpu
