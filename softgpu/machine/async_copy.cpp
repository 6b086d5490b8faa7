// PTX ISA, "Data Movement and Conversion Instructions: Non-bulk copy": the bytes of cp.async arrive at the wait.
#include "watcher.h"

namespace softgpu {
namespace {

void land(Warp& w, const AsyncCopy& c, u32 due) {
  u8 *from[LANES], *to[LANES];
  u32 reads = 0;
  for (int l = 0; l < LANES; l++)
    if (due >> l & 1 && c.taken[l]) reads |= 1u << l;
  locate(w, *c.by, due, c.target, Space::Shared, c.bytes, to);
  locate(w, *c.by, reads, c.source, Space::Global, c.bytes, from);
  for (u32 rest = due; rest; rest &= rest - 1) {
    const int l = __builtin_ctz(rest);
    if (c.taken[l]) std::memcpy(to[l], from[l], c.taken[l]);
    std::memset(to[l] + c.taken[l], 0, c.bytes - c.taken[l]);
    if (Watcher* watcher = w.block->watcher()) watcher->lands(w, l, to[l], c.bytes);
  }
}

}  // namespace

void finish_copies(Warp& w, u32 mask, s64 newest) {
  std::vector<AsyncCopy> left;
  for (AsyncCopy& c : w.copies) {
    u32 due = 0;
    for (u32 rest = c.mask & mask; rest; rest &= rest - 1) {
      const int l = __builtin_ctz(rest);
      if (newest < 0 || s64(c.group[l]) + newest < s64(w.committed[l])) due |= 1u << l;
    }
    if (due) land(w, c, due);
    c.mask &= ~due;
    if (c.mask) left.push_back(c);
  }
  w.copies.swap(left);
}

}  // namespace softgpu
