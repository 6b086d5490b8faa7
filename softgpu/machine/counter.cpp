#include "counter.h"

#include <algorithm>
#include <sstream>

namespace softgpu {

void Counter::executes(Warp& w, const Instruction& i, u32) { executed_[&w.program->statements[i.statement]]++; }

void Counter::accesses(Warp& w, const Instruction& i, u32 mask, u8* const* host, u32 bytes, const Access& access) {
  if (!mask) return;
  if (access.atomic() && access.kind == AccessKind::AtomicModify) atomics_ += __builtin_popcount(mask);
  if (is_shared(w, host[__builtin_ctz(mask)])) shared(access.writes() ? shared_stores_ : shared_loads_, w, i, mask, host, bytes);
  else global(access.writes() ? stores_ : loads_, mask, host, bytes);
}

// cp.async writes shared memory as a store does.
void Counter::issues(Warp& w, const Instruction& i, u32 mask, u8* const* target, u32 bytes) {
  shared(shared_stores_, w, i, mask, target, bytes);
}

void Counter::prefetches(Warp&, u32 mask, u8* const* host, const u32* bytes) {
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const int l = __builtin_ctz(rest);
    prefetches_++;
    for (u64 line = u64(host[l]) / 128; line <= (u64(host[l]) + bytes[l] - 1) / 128; line++) prefetched_.insert(line);
  }
}

// The fewest sectors are those that as many different bytes need.
void Counter::global(Traffic& t, u32 mask, u8* const* host, u32 bytes) {
  std::set<u64> sectors, words;
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const u64 a = u64(host[__builtin_ctz(rest)]);
    words.insert(a);
    for (u64 s = a / 32; s <= (a + bytes - 1) / 32; s++) sectors.insert(s);
  }
  t.accesses++;
  t.bytes += u64(bytes) * __builtin_popcount(mask);
  t.sectors += sectors.size();
  t.least_sectors += (words.size() * bytes + 31) / 32;
}

// Lanes go together as far as 128 bytes reach: all 32 with 4 bytes, 16 with 8, 8 with 16. Of those, lanes that want
// different words of one bank take turns; the same word is read at once.
void Counter::shared(Passes& total, const Warp& w, const Instruction& i, u32 mask, u8* const* host, u32 bytes) {
  Passes p{1};
  const int together = std::max(1, 32 / std::max<int>(1, bytes / 4));
  for (int first = 0; first < LANES; first += together) {
    std::set<u64> words[32];
    bool any = false;
    for (int l = first; l < std::min(first + together, LANES); l++) {
      if (!(mask >> l & 1)) continue;
      any = true;
      const u64 at = u64(host[l] - w.block->shared.data());
      for (u64 word = at / 4; word <= (at + bytes - 1) / 4; word++) words[word % 32].insert(word);
    }
    size_t passes = 0;
    for (auto& bank : words) passes = std::max(passes, bank.size());
    p.passes += passes, p.least_passes += any;
  }
  total += p;
  by_place_[{w.program, &i}] += p;
}

// An instruction's opcode, with the state space where it has one: ld.shared, cp.async, cp.async.commit_group.
static std::string kind_of(const Statement& s) {
  if (s.opcode == "cp") return s.has("commit_group") ? "cp.async.commit_group" : s.has("wait_group") || s.has("wait_all") ? "cp.async.wait" : "cp.async";
  if (s.opcode == "ld" || s.opcode == "st")
    for (const char* space : {"global", "shared", "local", "param"})
      if (s.has(space)) return s.opcode + "." + space;
  return s.opcode;
}

std::string Counter::json(const Grid& g) const {
  std::ostringstream out;
  std::map<std::string, u64> by_opcode;
  for (auto& [statement, count] : executed_) by_opcode[kind_of(*statement)] += count;
  out << "{\"kernel\": \"" << g.program->name << "\", \"grid\": [" << g.grid.x << ", " << g.grid.y << ", " << g.grid.z << "], \"block\": [" << g.block.x
      << ", " << g.block.y << ", " << g.block.z << "], \"instructions\": {";
  const char* comma = "";
  for (auto& [opcode, count] : by_opcode) out << comma << "\"" << opcode << "\": " << count, comma = ", ";
  out << "}";
  const auto traffic = [&](const char* name, const Traffic& t) {
    out << ", \"" << name << "\": {\"accesses\": " << t.accesses << ", \"bytes\": " << t.bytes << ", \"sectors\": " << t.sectors
        << ", \"least_sectors\": " << t.least_sectors << "}";
  };
  const auto passes = [&](const char* name, const Passes& p) {
    out << ", \"" << name << "\": {\"accesses\": " << p.accesses << ", \"passes\": " << p.passes << ", \"least_passes\": " << p.least_passes << "}";
  };
  traffic("global_loads", loads_), traffic("global_stores", stores_);
  passes("shared_loads", shared_loads_), passes("shared_stores", shared_stores_);
  out << ", \"prefetches\": {\"requests\": " << prefetches_ << ", \"lines\": " << prefetched_.size()
      << ", \"span\": " << (prefetched_.empty() ? 0 : *prefetched_.rbegin() - *prefetched_.begin() + 1) << "}";
  out << ", \"atomics\": " << atomics_ << ", \"conflicts\": [";
  comma = "";
  for (auto& [where, p] : by_place_) {
    if (p.passes == p.least_passes) continue;
    const Statement& s = where.first->statements[where.second->statement];
    out << comma << "{\"opcode\": \"" << s.opcode << "\", \"source\": \"" << source_of(*where.first, *where.second) << "\", \"passes\": " << p.passes
        << ", \"least_passes\": " << p.least_passes << "}";
    comma = ", ";
  }
  out << "]}";
  return out.str();
}

}  // namespace softgpu
