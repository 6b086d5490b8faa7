// PTX ISA, "Data Movement and Conversion Instructions": cp.async and its groups, and cp.async.bulk.prefetch.
#include <algorithm>

#include "../machine/watcher.h"
#include "lanes.h"

namespace softgpu {
namespace {

// o[0] the shared address, o[1] the global one (b: which of them have 64 bits), a bytes, o[2] how many are read, if c.
void issue(Warp& w, I i, u32 m) {
  AsyncCopy copy{};
  copy.mask = m, copy.bytes = i.a, copy.by = &i;
  u32 reads = 0;
  for (int l = 0; l < LANES; l++) {
    copy.group[l] = w.committed[l];
    copy.target[l] = (i.b & 1 ? w.at<u64>(i.o[0])[l] : w.at<u32>(i.o[0])[l]) + i.target;
    copy.source[l] = (i.b & 2 ? w.at<u64>(i.o[1])[l] : w.at<u32>(i.o[1])[l]) + i.offset;
    copy.taken[l] = i.c ? std::min(w.at<u32>(i.o[2])[l], i.a) : i.a;
    if (m >> l & 1 && copy.taken[l]) reads |= 1u << l;
  }
  // addresses are judged where the instruction stands, bytes move at the wait
  u8 *to[LANES], *from[LANES];
  locate(w, i, m, copy.target, Space::Shared, i.a, to);
  reach(w, i, reads, copy.source, Space::Global, i.a, from);
  for (u32 rest = m; rest; rest &= rest - 1) std::memset(to[__builtin_ctz(rest)], 0xff, i.a);
  if (Watcher* watcher = w.block->watcher()) watcher->issues(w, i, m, to, i.a);
  w.copies.push_back(copy);
}
void commit(Warp& w, I, u32 m) { EACH(w.committed[l]++) }
void wait(Warp& w, I i, u32 m) { finish_copies(w, m, i.offset); }

// o[15] the first address, o[0] how many bytes: first, last and all between are judged.
void prefetch_bulk(Warp& w, I i, u32 m) {
  u64 first[LANES], last[LANES];
  u8 *host[LANES], *end[LANES];
  const u32* bytes = w.at<u32>(i.o[0]);
  addresses(w, i, first);
  for (int l = 0; l < LANES; l++) {
    last[l] = first[l] + bytes[l] - 16;
    if (m >> l & 1 && (!bytes[l] || bytes[l] % 16)) fault(w, i, l, ILLEGAL_INSTRUCTION, "prefetch of " + std::to_string(bytes[l]) + " bytes, no multiple of 16");
  }
  locate(w, i, m, first, Space::Global, 16, host);
  locate(w, i, m, last, Space::Global, 16, end);
  if (Watcher* watcher = w.block->watcher()) watcher->prefetches(w, m, host, bytes);
}

Handler cp(Form& f) {
  if (f.has("bulk") && f.has("prefetch") && f.has("L2") && f.has("global")) {
    f.decoder.address(f.in(0), f.out);
    f.out.o[0] = f.source(1, 4);
    return prefetch_bulk;
  }
  if (!f.has("async") || f.has("bulk") || f.has("mbarrier")) return nullptr;
  if (f.has("commit_group")) return commit;
  if (f.has("wait_group") || f.has("wait_all")) {
    f.out.offset = f.has("wait_all") ? -1 : s64(f.in(0).bits);
    return wait;
  }
  Instruction to{}, from{};
  f.decoder.address(f.in(0), to);
  f.decoder.address(f.in(1), from);
  f.out.o[0] = to.o[15], f.out.target = to.offset, f.out.o[1] = from.o[15], f.out.offset = from.offset;
  f.out.b = (to.b == 8 ? 1 : 0) | (from.b == 8 ? 2 : 0);
  f.out.a = f.in(2).bits;
  f.out.c = f.count() > (f.has("L2::cache_hint") ? 4u : 3u);
  if (f.out.c) f.out.o[2] = f.source(3, 4);
  return issue;
}

}  // namespace

const Family ASYNC_COPIES = {{"cp", cp}};

}  // namespace softgpu
