// NCCL between processes of one machine (or threads): mailboxes in shared memory, one for each pair of ranks.
// Every collective is sends and receives; sums are taken in rank order and rounded to the type at every step.
#include <fcntl.h>
#include <immintrin.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <utility>

#include "../machine/rest.h"
#include "runtime.h"

using namespace softgpu;

namespace {

enum { OK = 0, SYSTEM = 2, INVALID_ARGUMENT = 4, INVALID_USAGE = 5 };
constexpr size_t CHUNK = 128 << 10;
constexpr int MOST_RANKS = 64;

struct Mailbox {
  std::atomic<u64> written, read;
  char data[CHUNK];
};
struct Board {
  std::atomic<int> joined, left;
  std::atomic<int> device[MOST_RANKS];  // 1 + number of the GPU
};
struct Id {
  char internal[128];
};
struct Comm {
  int rank, size, device;
  size_t bytes;
  Board* board;
  Mailbox* boxes;
  std::atomic<bool> aborted{false};
  Mailbox& box(int from, int to) { return boxes[from * size + to]; }
};
struct Transfer {
  Comm* comm;
  bool sends;
  char* data;
  size_t bytes;
  int peer;
  size_t done = 0;
};

size_t size_of(int type) {
  static const size_t sizes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2};
  return type >= 0 && type < 10 ? sizes[type] : 0;
}

// All of a group go on together, so that no order of sends and receives can block.
int run(std::vector<Transfer> list) {
  u64 idle = 0;
  for (;;) {
    bool open = false, moved = false;
    for (size_t n = 0; n < list.size(); n++) {
      Transfer& t = list[n];
      if (t.done == t.bytes) continue;
      open = true;
      bool behind = false;  // transfers between the same two go in order
      for (size_t k = 0; k < n; k++) behind |= list[k].done < list[k].bytes && list[k].sends == t.sends && list[k].peer == t.peer && list[k].comm == t.comm;
      if (behind) continue;
      if (t.comm->aborted) return SYSTEM;
      Mailbox& box = t.sends ? t.comm->box(t.comm->rank, t.peer) : t.comm->box(t.peer, t.comm->rank);
      const bool full = box.written.load(std::memory_order_acquire) != box.read.load(std::memory_order_acquire);
      if (full == t.sends) continue;
      const size_t part = std::min(CHUNK, t.bytes - t.done);
      if (t.sends) {
        std::memcpy(box.data, t.data + t.done, part);
        box.written.fetch_add(1, std::memory_order_release);
      } else {
        std::memcpy(t.data + t.done, box.data, part);
        box.read.fetch_add(1, std::memory_order_release);
      }
      t.done += part;
      moved = true;
    }
    if (!open) return OK;
    if (moved) idle = 0;
    else if (++idle > 100) rest(idle - 100);
  }
}

template <class T, class F>
void fold(void* into, const void* from, size_t n, F f) {
  for (size_t i = 0; i < n; i++) ((T*)into)[i] = f(((T*)into)[i], ((const T*)from)[i]);
}
template <class T>
void fold_op(void* into, const void* from, size_t n, int op) {
  if (op == 0 || op == 4) fold<T>(into, from, n, [](T a, T b) { return T(a + b); });
  else if (op == 1) fold<T>(into, from, n, [](T a, T b) { return T(a * b); });
  else if (op == 2) fold<T>(into, from, n, [](T a, T b) { return std::max(a, b); });
  else fold<T>(into, from, n, [](T a, T b) { return std::min(a, b); });
}
float up(u16 x, bool half) { return half ? _cvtsh_ss(x) : std::bit_cast<float>(u32(x) << 16); }
u16 down(float f, bool half) {
  if (half) return _cvtss_sh(f, 0);
  const u32 b = std::bit_cast<u32>(f);
  return f != f ? 0x7fff : (b + 0x7fff + (b >> 16 & 1)) >> 16;
}
void reduce(void* into, const void* from, size_t n, int type, int op) {
  switch (type) {
    case 0: return fold_op<s8>(into, from, n, op);
    case 1: return fold_op<u8>(into, from, n, op);
    case 2: return fold_op<s32>(into, from, n, op);
    case 3: return fold_op<u32>(into, from, n, op);
    case 4: return fold_op<s64>(into, from, n, op);
    case 5: return fold_op<u64>(into, from, n, op);
    case 7: return fold_op<float>(into, from, n, op);
    case 8: return fold_op<double>(into, from, n, op);
    default: {
      const bool half = type == 6;
      fold<u16>(into, from, n, [=](u16 a, u16 b) {
        const float x = up(a, half), y = up(b, half);
        return down(op == 1 ? x * y : op == 2 ? std::max(x, y) : op == 3 ? std::min(x, y) : x + y, half);
      });
    }
  }
}

thread_local int depth = 0;
thread_local std::vector<std::pair<void*, std::vector<Transfer>>> group;
thread_local std::vector<std::pair<void*, std::function<int()>>> group_works;

// On a stream that is being captured the work is kept for the graph.
int hand_over(void* stream, std::function<int()> work) {
  return captured(stream, work) ? 0 : submit(stream, std::move(work));
}
int give(void* stream, std::vector<Transfer> list) {
  if (depth) return group.push_back({stream, std::move(list)}), OK;
  return hand_over(stream, [list] { return run(list) ? 719 : 0; }) ? SYSTEM : OK;
}
int give_work(void* stream, std::function<int()> work) {
  if (depth) return group_works.push_back({stream, std::move(work)}), OK;
  return hand_over(stream, std::move(work)) ? SYSTEM : OK;
}

// What every rank has of `bytes`, in rank order.
int gather(Comm* c, const void* own, size_t bytes, char* all) {
  std::vector<Transfer> list;
  for (int r = 0; r < c->size; r++) {
    if (r == c->rank) {
      std::memmove(all + r * bytes, own, bytes);
      continue;
    }
    list.push_back({c, true, (char*)own, bytes, r});
    list.push_back({c, false, all + r * bytes, bytes, r});
  }
  return run(list) ? 719 : 0;
}

}  // namespace

extern "C" {

const char* ncclGetErrorString(int e) { return e == OK ? "no error" : e == INVALID_USAGE ? "invalid usage" : e == INVALID_ARGUMENT ? "invalid argument" : "unhandled system error"; }
const char* ncclGetLastError(void*) { return ""; }
int ncclGetVersion(int* v) { return *v = 22705, OK; }
int ncclGetUniqueId(Id* id) {
  std::random_device random;
  std::memset(id, 0, sizeof *id);
  std::snprintf(id->internal, sizeof id->internal, "/softgpu-nccl-%08x%08x", random(), random());
  return OK;
}
int ncclCommInitRankConfig(Comm** out, int size, Id id, int rank, void*) {
  if (size < 1 || size > MOST_RANKS || rank < 0 || rank >= size) return INVALID_ARGUMENT;
  const size_t bytes = sizeof(Board) + 64 + sizeof(Mailbox) * size * size;
  const int fd = shm_open(id.internal, O_RDWR | O_CREAT, 0600);
  if (fd < 0 || ftruncate(fd, bytes)) return SYSTEM;
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  if (p == MAP_FAILED) return SYSTEM;
  auto* c = new Comm{rank, size, current_device(), bytes, (Board*)p, (Mailbox*)((char*)p + (sizeof(Board) + 63) / 64 * 64)};
  c->board->device[rank] = 1 + c->device;
  c->board->joined++;
  for (u64 looks = 0; c->board->joined < size; looks++) rest(looks);
  for (int r = 0; r < size; r++)
    if (r != rank && c->board->device[r] == 1 + c->device) {
      std::fprintf(stderr, "softgpu: nccl: ranks %d and %d have the same GPU\n", rank, r);
      return INVALID_USAGE;
    }
  if (rank == 0) shm_unlink(id.internal);
  *out = c;
  return OK;
}
int ncclCommInitRank(Comm** out, int size, Id id, int rank) { return ncclCommInitRankConfig(out, size, id, rank, nullptr); }
int ncclCommInitAll(Comm**, int, const int*) { return INVALID_USAGE; }
int ncclCommSplit(Comm*, int, int, Comm**, void*) { return INVALID_USAGE; }
int ncclCommDestroy(Comm* c) { return munmap(c->board, c->bytes), delete c, OK; }
int ncclCommAbort(Comm* c) { return c->aborted = true, OK; }
int ncclCommGetAsyncError(Comm*, int* e) { return *e = OK, OK; }
int ncclCommCount(const Comm* c, int* n) { return *n = c->size, OK; }
int ncclCommUserRank(const Comm* c, int* n) { return *n = c->rank, OK; }
int ncclCommCuDevice(const Comm* c, int* n) { return *n = c->device, OK; }

int ncclGroupStart() { return depth++, OK; }
int ncclGroupEnd() {
  if (--depth) return OK;
  auto taken = std::exchange(group, {});
  auto works = std::exchange(group_works, {});
  if (!taken.empty()) {
    std::vector<Transfer> all;
    for (auto& [stream, list] : taken) all.insert(all.end(), list.begin(), list.end());
    if (hand_over(taken[0].first, [all] { return run(all) ? 719 : 0; })) return SYSTEM;
  }
  for (auto& [stream, work] : works)
    if (hand_over(stream, work)) return SYSTEM;
  return OK;
}
int ncclSend(const void* p, size_t n, int type, int peer, Comm* c, void* stream) {
  if (peer < 0 || peer >= c->size || !size_of(type)) return INVALID_ARGUMENT;
  return give(stream, {{c, true, (char*)p, n * size_of(type), peer}});
}
int ncclRecv(void* p, size_t n, int type, int peer, Comm* c, void* stream) {
  if (peer < 0 || peer >= c->size || !size_of(type)) return INVALID_ARGUMENT;
  return give(stream, {{c, false, (char*)p, n * size_of(type), peer}});
}
int ncclAllGather(const void* from, void* to, size_t n, int type, Comm* c, void* stream) {
  if (!size_of(type)) return INVALID_ARGUMENT;
  return give_work(stream, [=] { return gather(c, from, n * size_of(type), (char*)to); });
}
int ncclAllReduce(const void* from, void* to, size_t n, int type, int op, Comm* c, void* stream) {
  if (!size_of(type) || op < 0 || op > 3) return INVALID_ARGUMENT;
  return give_work(stream, [=] {
    const size_t bytes = n * size_of(type);
    std::vector<char> all(bytes * c->size);
    if (int e = gather(c, from, bytes, all.data())) return e;
    for (int r = 1; r < c->size; r++) reduce(all.data(), all.data() + r * bytes, n, type, op);
    std::memcpy(to, all.data(), bytes);
    return 0;
  });
}
int ncclReduceScatter(const void* from, void* to, size_t n, int type, int op, Comm* c, void* stream) {
  if (!size_of(type) || op < 0 || op > 3) return INVALID_ARGUMENT;
  return give_work(stream, [=] {
    const size_t bytes = n * size_of(type);
    std::vector<char> all(bytes * c->size * c->size);
    if (int e = gather(c, from, bytes * c->size, all.data())) return e;
    char* own = all.data() + c->rank * bytes;
    for (int r = 1; r < c->size; r++) reduce(own, own + r * bytes * c->size, n, type, op);
    std::memcpy(to, own, bytes);
    return 0;
  });
}
int ncclReduce(const void* from, void* to, size_t n, int type, int op, int root, Comm* c, void* stream) {
  if (!size_of(type) || op < 0 || op > 3) return INVALID_ARGUMENT;
  return give_work(stream, [=] {
    const size_t bytes = n * size_of(type);
    std::vector<char> all(bytes * c->size);
    if (int e = gather(c, from, bytes, all.data())) return e;
    for (int r = 1; r < c->size; r++) reduce(all.data(), all.data() + r * bytes, n, type, op);
    if (c->rank == root) std::memcpy(to, all.data(), bytes);
    return 0;
  });
}
int ncclBroadcast(const void* from, void* to, size_t n, int type, int root, Comm* c, void* stream) {
  if (!size_of(type)) return INVALID_ARGUMENT;
  return give_work(stream, [=] {
    const size_t bytes = n * size_of(type);
    std::vector<Transfer> list;
    if (c->rank == root) {
      for (int r = 0; r < c->size; r++)
        if (r != root) list.push_back({c, true, (char*)from, bytes, r});
      std::memmove(to, from, bytes);
    } else {
      list.push_back({c, false, (char*)to, bytes, root});
    }
    return run(list) ? 719 : 0;
  });
}
int ncclBcast(void* p, size_t n, int type, int root, Comm* c, void* stream) { return ncclBroadcast(p, p, n, type, root, c, stream); }

}  // extern "C"
