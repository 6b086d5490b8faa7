// The checker: what compute-sanitizer's memcheck, racecheck, initcheck and synccheck look for, on the CPU.
//
// Kernels of a check build are compiled with -fsanitize=thread but not linked with its library: the calls
// that the compiler puts before every access (__tsan_read4 and so on) end here. Accesses are ordered by
// vector clocks, so a race is reported even where this schedule happened to give the right result. Every byte
// of shared and of global memory has a cell. Memory itself is not weak: a program without races behaves as
// here, one with a race is reported.
#include <dlfcn.h>

#include <cstdio>
#include <unordered_map>

#include "runtime.h"

namespace simt {
namespace {

struct Read {
  uint32_t thread, clock;
  int next;
  bool atomic;
};
std::vector<Read> reads;  // the lists of all cells
int free_read = -1;
std::unordered_map<const void*, VectorClock>
    published;  // what an atomic location makes known to who reads it

// Who touched an atomic location last: between devices only the scope of the system will do.
struct Toucher {
  int device;
  Scope scope;
};
std::unordered_map<const void*, Toucher> touchers;

void check_scope(const void* p, Scope scope, int line) {
  const int device = state.lane->block->launch->device;
  const auto [it, first] = touchers.try_emplace(p, Toucher{device, scope});
  if (!first && it->second.device != device && (scope != SYSTEM_SCOPE || it->second.scope != SYSTEM_SCOPE))
    fail("line %d: an atomic location is shared by devices, but not all accesses have the scope of the system", line);
  it->second = {device, scope};
}

struct Access {
  const char* space;
  uint32_t offset;
  void* pc;
  int line;
};

uint32_t self_id() { return state.lane->block->id * state.threads_per_block + state.lane->index; }

bool happened_before(uint32_t thread, uint32_t clock) {
  const uint32_t n = state.threads_per_block;
  return thread == self_id() || state.lane->known.covers(thread / n, thread % n, clock);
}

[[noreturn]] void race(const char* ours, const char* theirs, uint32_t other, const Access& at) {
  const uint32_t n = state.threads_per_block;
  fail("race on %s memory at byte %u: %s at %s is not ordered after %s by thread %u of block #%u", at.space,
       at.offset, ours, source_place(at.pc, at.line).c_str(), theirs, other % n, other / n);
}

void note_read(Cell& cell, bool atomic) {
  const uint32_t id = self_id(), now = state.lane->now;
  if (cell.reads >= 0 && reads[cell.reads].thread == id && reads[cell.reads].atomic == atomic) {
    reads[cell.reads].clock = now;
    return;
  }
  int n = free_read;
  if (n >= 0) free_read = reads[n].next;
  else n = reads.size(), reads.push_back({});
  reads[n] = {id, now, cell.reads, atomic};
  cell.reads = n;
}

void note_write(Cell& cell, bool atomic, const char* kind, const Access& at) {
  while (cell.reads >= 0) {
    const Read read = reads[cell.reads];
    if (!(atomic && read.atomic) && !happened_before(read.thread, read.clock))
      race(kind, "a read", read.thread, at);
    reads[cell.reads].next = free_read;
    free_read = cell.reads;
    cell.reads = read.next;
  }
  cell.writer = self_id(), cell.write_clock = state.lane->now;
  cell.flags = (cell.flags & ALLOCATED) | INITIALISED | (atomic ? ATOMIC : 0);
}

void touch(Cell& cell, bool write, bool atomic, const Access& at) {
  const char* kind = atomic ? "atomic" : write ? "write" : "read";
  if (cell.flags & IN_FLIGHT)
    fail(
        "%s of %s memory at byte %u, %s, while a cp.async of thread %u into it is in flight (not waited for)",
        kind, at.space, at.offset, source_place(at.pc, at.line).c_str(),
        cell.writer % state.threads_per_block);
  const bool both_atomic = atomic && cell.flags & ATOMIC;
  if (cell.write_clock && !both_atomic && !happened_before(cell.writer, cell.write_clock))
    race(kind, "a write", cell.writer, at);
  if (write) note_write(cell, atomic, kind, at);
  else note_read(cell, atomic);
}

void touch_shared(Block* block, uint32_t offset, uint32_t bytes, bool write, bool atomic, void* pc,
                  int line) {
  uint32_t device = 0;  // the offset as the kernel's author knows it
  for (auto& array : block->arrays)
    if (offset >= array.host_offset) device = offset - array.host_offset + array.device_offset;
  for (uint32_t i = 0; i < bytes; i++) {
    Cell& cell = block->cells[offset + i];
    if (!(cell.flags & ALLOCATED))
      fail("shared memory %s out of bounds, near offset %u, at %s", write ? "write" : "read", device + i,
           source_place(pc, line).c_str());
    if (!write && !(cell.flags & (INITIALISED | IN_FLIGHT)))
      fail("uninitialized shared memory read at offset %u, %s", device + i, source_place(pc, line).c_str());
    touch(cell, write, atomic, {"shared", device + i, pc, line});
  }
}

// True if the access was to a device buffer.
bool touch_global(uintptr_t address, uint32_t bytes, bool write, bool atomic, void* pc, int line) {
  auto it = buffers().upper_bound(address);
  if (it == buffers().begin()) return false;
  auto& [base, buffer] = *--it;
  const char* kind = write ? "write" : "read";
  const size_t offset = address - base;
  if (offset >= buffer.bytes) {
    if (reinterpret_cast<char*>(address) < buffer.mapping + buffer.mapped)
      fail("global memory %s %zu bytes past the end of a %zu-byte buffer at %s", kind, offset - buffer.bytes,
           buffer.bytes, source_place(pc, line).c_str());
    return false;
  }
  if (offset + bytes > buffer.bytes)
    fail("global memory %s runs over the end of a %zu-byte buffer at %s", kind, buffer.bytes,
         source_place(pc, line).c_str());
  if (buffer.cells_of_launch !=
      state.launch_number) {  // launches of one stream are ordered: all is forgotten
    buffer.cells.assign(buffer.bytes, {0, 0, -1, 0});
    buffer.cells_of_launch = state.launch_number;
  }
  for (uint32_t i = 0; i < bytes; i++)
    touch(buffer.cells[offset + i], write, atomic, {"global", uint32_t(offset + i), pc, line});
  return true;
}

bool in_module(uintptr_t address) {
  Dl_info info;
  return dladdr(reinterpret_cast<void*>(address), &info) && info.dli_fname;
}

}  // namespace

std::string source_place(void* pc, int line) {
  char place[600] = "?";
  Dl_info info;
  if (line) snprintf(place, sizeof place, "line %d", line);
  else if (dladdr(pc, &info))  // Python turns this into file and line with addr2line
    snprintf(place, sizeof place, "pc %s+0x%zx", info.dli_fname,
             size_t(static_cast<char*>(pc) - static_cast<char*>(info.dli_fbase) - 1));
  return place;
}

void reset_checker() {
  reads.clear();
  free_read = -1;
  published.clear();
  touchers.clear();
}

void check_access(const void* p, uint32_t bytes, bool write, bool atomic, void* pc, int line, bool aligned) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(p);
  Lane* lane = state.lane;
  Block* block = lane->block;
  if (address - reinterpret_cast<uintptr_t>(lane->stack) < state.stack_bytes) return;
  if (aligned && address % bytes)
    fail("misaligned %u-byte access at %s", bytes, source_place(pc, line).c_str());
  const uintptr_t offset = address - reinterpret_cast<uintptr_t>(block->shared);
  if (offset < block->arena) return touch_shared(block, offset, bytes, write, atomic, pc, line);
  if (touch_global(address, bytes, write, atomic, pc, line)) return;
  if (!write && in_module(address)) return;  // constants of the kernel
  fail("%s of an address that is no device memory (%p) at %s", write ? "write" : "read", p,
       source_place(pc, line).c_str());
}

void check_range(const void* p, int bytes, bool write, int line) {
  if (state.check) check_access(p, bytes, write, false, nullptr, line);
}

void mark_in_flight(Block* block, const char* p, int bytes) {
  for (int i = 0; i < bytes; i++) block->cells[p - block->shared + i].flags |= IN_FLIGHT;
}

void mark_landed(Block* block, const char* p, int bytes, uint32_t clock) {
  for (int i = 0; i < bytes; i++) {
    Cell& cell = block->cells[p - block->shared + i];
    cell.flags = (cell.flags | INITIALISED) & ~IN_FLIGHT;
    cell.write_clock = clock;
  }
}

VectorClock publish(Lane* lane) {
  VectorClock known = lane->known;
  known.stamp(lane->block->id, {{lane->index, lane->now++}}, state.threads_per_block);
  return known;
}

// ---- memory order: release publishes at a location, acquire learns from it; relaxed accesses wait for a fence

void fence() {
  if (!state.check) return;
  state.lane->known.join(state.lane->collected);
  state.lane->at_fence = publish(state.lane);
}

uint32_t atomic_load(const uint32_t* p, bool acquire, int line, Scope scope) {
  if (state.check) {
    check_scope(p, scope, line);
    check_access(p, 4, false, true, nullptr, line);
    if (auto it = published.find(p); it != published.end())
      (acquire ? state.lane->known : state.lane->collected).join(it->second);
  }
  const uint32_t value = *static_cast<const volatile uint32_t*>(p);  // value and order are taken together
  spin();
  return value;
}

void before_atomic(void* p, int bytes, AtomicKind kind, int line, Scope scope) {
  state.idle_spins = 0;
  if (!state.check) return;
  Lane* lane = state.lane;
  check_scope(p, scope, line);
  check_access(p, bytes, true, true, nullptr, line);
  VectorClock& location = published[p];
  if (kind == STORE_RELAXED) location = lane->at_fence;
  if (kind == STORE_RELEASE) location = publish(lane);
  if (kind == MODIFY_RELAXED) lane->collected.join(location), location.join(lane->at_fence);
  if (kind == MODIFY_ACQ_REL) lane->known.join(location), location.join(publish(lane));
}

namespace {

bool watching() { return state.running && state.check; }

// A volatile access counts as a relaxed atomic.
void on_volatile(void* p, int bytes, bool write, void* pc) {
  if (!watching()) return;
  if (!write) spin();
  check_access(p, bytes, write, true, pc, 0);
  if (write) published[p] = state.lane->at_fence;
  else if (auto it = published.find(p); it != published.end()) state.lane->collected.join(it->second);
}

}  // namespace
}  // namespace simt

// ---- the calls that the compiler inserts
#define PC __builtin_return_address(0)
#define PLAIN(NAME, BYTES, WRITE, ALIGNED)                                            \
  void NAME(void* p) {                                                                \
    if (simt::watching()) simt::check_access(p, BYTES, WRITE, false, PC, 0, ALIGNED); \
  }
#define ACCESSES(N)                                                             \
  PLAIN(__tsan_read##N, N, false, true)                                         \
  PLAIN(__tsan_write##N, N, true, true)                                         \
  PLAIN(__tsan_unaligned_read##N, N, false, false)                              \
  PLAIN(__tsan_unaligned_write##N, N, true, false)                              \
  void __tsan_volatile_read##N(void* p) { simt::on_volatile(p, N, false, PC); } \
  void __tsan_volatile_write##N(void* p) { simt::on_volatile(p, N, true, PC); }
#define RANGE(NAME, WRITE)                                                           \
  void NAME(void* p, size_t n) {                                                     \
    if (simt::watching() && n) simt::check_access(p, n, WRITE, false, PC, 0, false); \
  }
extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
RANGE(__tsan_read_range, false)
RANGE(__tsan_write_range, true)
}
