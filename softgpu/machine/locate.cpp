// PTX ISA, "State Spaces" and "Generic Addressing": where an address lies, and whether it may be touched.
#include <cstdio>

#include "memory.h"
#include "settings.h"
#include "watcher.h"

namespace softgpu {
namespace {

Space space_of(u64& address) {
  switch (address >> 56) {
    case 1: address -= SHARED_WINDOW; return Space::Shared;
    case 2: address -= LOCAL_WINDOW; return Space::Local;
    case 3: address -= PARAM_WINDOW; return Space::Param;
    default: return Space::Global;
  }
}

u8* in_global(Warp& w, const Instruction& i, int lane, u64 a, u32 bytes) {
  Known& k = w.known[w.pc & 15];
  if (a >= k.begin && a + bytes <= k.end) return reinterpret_cast<u8*>(a);
  Allocation found;
  if (memory::find(a, &found) && a + bytes <= found.end) {
    k = {found.begin, found.end};
  } else if (settings().check_bounds) {
    char text[64];
    std::snprintf(text, sizeof text, "out of bounds: %u bytes at %#llx, ", bytes, (unsigned long long)a);
    fault(w, i, lane, ILLEGAL_ADDRESS, text + memory::describe(a));
  }
  return reinterpret_cast<u8*>(a);
}

u8* in_shared(Warp& w, const Instruction& i, int lane, u64 a, u32 bytes) {
  const u64 at = a - SHARED_START, size = w.block->shared.size();
  if (a < SHARED_START || at + bytes > size)
    fault(w, i, lane, ILLEGAL_ADDRESS,
          "out of bounds: " + std::to_string(bytes) + " bytes at " + std::to_string(s64(at)) + " of " + std::to_string(size) + " bytes of shared memory");
  return w.block->shared.data() + at;
}

u8* in_local(Warp& w, const Instruction& i, int lane, u64 a, u32 bytes) {
  const u64 size = w.program->local_bytes;
  if (a + bytes > size) fault(w, i, lane, ILLEGAL_ADDRESS, "beyond local memory");
  return w.block->local.data() + (u64(w.number) * LANES + lane) * size + a;
}

u8* in_parameters(Warp& w, const Instruction& i, int lane, u64 a, u32 bytes) {
  const auto& parameters = w.block->grid->parameters;
  if (a + bytes > parameters.size()) fault(w, i, lane, ILLEGAL_ADDRESS, "beyond the parameters");
  return const_cast<u8*>(parameters.data()) + a;
}

// All lanes at once, where they are within what this instruction met before; false where one is not.
bool locate_together(Warp& w, u32 mask, const u64* a, Space space, u32 bytes, u8** host) {
  u64 low = ~0ull, high = 0, bits = 0;
  for (int l = 0; l < LANES; l++) {
    if (!(mask >> l & 1)) continue;
    low = std::min(low, a[l]), high = std::max(high, a[l]), bits |= a[l];
  }
  if (bits & (bytes - 1)) return false;
  u64 base = 0;
  if (space == Space::Shared) {
    if (low < SHARED_START || high - SHARED_START + bytes > w.block->shared.size()) return false;
    base = u64(w.block->shared.data()) - SHARED_START;
  } else {
    const Known& k = w.known[w.pc & 15];
    if (space == Space::Local || space == Space::Param || low < k.begin || high + bytes > k.end) return false;
  }
  for (int l = 0; l < LANES; l++) host[l] = reinterpret_cast<u8*>(base + a[l]);
  return true;
}

}  // namespace

void locate(Warp& w, const Instruction& i, u32 mask, const u64* addresses, Space space, u32 bytes, u8** host) {
  if (locate_together(w, mask, addresses, space, bytes, host)) return;
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    u64 a = addresses[lane];
    if (a % bytes) fault(w, i, lane, MISALIGNED, "misaligned: address " + std::to_string(a) + " is not a multiple of " + std::to_string(bytes));
    const Space s = space == Space::Generic ? space_of(a) : space;
    host[lane] = s == Space::Shared  ? in_shared(w, i, lane, a, bytes)
                 : s == Space::Local ? in_local(w, i, lane, a, bytes)
                 : s == Space::Param ? in_parameters(w, i, lane, a, bytes)
                                     : in_global(w, i, lane, a, bytes);
  }
}

void reach(Warp& w, const Instruction& i, u32 mask, const u64* addresses, Space space, u32 bytes, u8** host) {
  locate(w, i, mask, addresses, space, bytes, host);
  if (i.access.writes()) w.block->run->progress++;
  if (Watcher* watcher = w.block->watcher()) watcher->accesses(w, i, mask, host, bytes, i.access);
}

}  // namespace softgpu
