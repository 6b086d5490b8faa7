// Device buffers, shared memory and cp.async: memory that shows a mistake instead of hiding it.
//
// Everything starts as 0xFF (a NaN in fp16, bf16 and fp32). A device buffer ends flush, to 16 bytes, against
// a page that may not be touched. Shared arrays have the device's offsets in their low bits but red zones
// between them. The bytes of a cp.async are gone at the issue and there at the wait: never early, and never
// late enough to be luck.
#include <sys/mman.h>

#include <cstring>

#include "runtime.h"

namespace simt {

std::map<uintptr_t, Buffer>& buffers() {
  static std::map<uintptr_t, Buffer> all;
  return all;
}

// ---- device buffers
extern "C" void* simt_malloc(size_t bytes) {
  const size_t body = (bytes + 15) / 16 * 16, mapped = (body + PAGE - 1) / PAGE * PAGE + 2 * PAGE;
  char* mapping = static_cast<char*>(mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (mapping == MAP_FAILED) return nullptr;
  mprotect(mapping + PAGE, mapped - 2 * PAGE, PROT_READ | PROT_WRITE);
  memset(mapping + PAGE, 0xff, mapped - 2 * PAGE);
  char* p = mapping + mapped - PAGE - body;
  buffers()[reinterpret_cast<uintptr_t>(p)] = {mapping, mapped, bytes, {}, 0};
  return p;
}

extern "C" void simt_free(void* p) {
  const auto it = buffers().find(reinterpret_cast<uintptr_t>(p));
  munmap(it->second.mapping, it->second.mapped);
  buffers().erase(it);
}

void explain_fault(const char* address, int signal) {
  for (auto& [base, buffer] : buffers())
    if (address >= buffer.mapping && address < buffer.mapping + buffer.mapped)
      fail("invalid global access %td bytes from the start of a %zu-byte buffer",
           address - reinterpret_cast<const char*>(base), buffer.bytes);
  fail("invalid memory access at %p (signal %d)", static_cast<const void*>(address), signal);
}

// ---- shared memory
char* new_arena(uint32_t bytes) {
  char* m = static_cast<char*>(mmap(nullptr, bytes + 8192, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  mprotect(m + 4096, bytes, PROT_READ | PROT_WRITE);
  return m + 4096;
}

void free_arena(char* arena, uint32_t bytes) { munmap(arena - 4096, bytes + 8192); }

void reset_shared(Block* block) {
  block->arrays.clear();
  memset(block->shared, 0xff, block->arena);
  if (state.check) block->cells.assign(block->arena, {0, 0, -1, 0});
}

void check_red_zones(const Block* block) {
  const auto poisoned = [&](uint32_t i) { return uint8_t(block->shared[i]) == 0xff; };
  uint32_t at = 0;
  for (auto& array : block->arrays) {
    for (; at < array.host_offset; at++)
      if (!poisoned(at))
        fail("shared memory written out of bounds, %u bytes before the array at offset %u",
             array.host_offset - at, array.device_offset);
    at = array.host_offset + array.bytes;
  }
  for (uint32_t end = at; at < block->arena; at++)
    if (!poisoned(at)) fail("shared memory written out of bounds, %u bytes past the last array", at - end);
}

unsigned char* shared_memory() { return reinterpret_cast<unsigned char*>(state.lane->block->shared); }

uint32_t carve(uint32_t offset, uint32_t bytes, uint32_t align, int line) {
  Block* block = state.lane->block;
  for (auto& array : block->arrays)
    if (array.device_offset == offset && array.bytes == bytes)
      return array.host_offset;  // another lane was first
  if (!block->arrays.empty() && offset < block->arrays.back().device_offset + block->arrays.back().bytes)
    fail("line %d: shared array at offset %u overlaps an earlier one", line, offset);
  if (offset + bytes > block->launch->shared_bytes)
    fail("dynamic shared memory too small at line %d: %u bytes needed, launch gave %u", line, offset + bytes,
         block->launch->shared_bytes);
  if (align > RED_ZONE || block->arrays.size() >= size_t(MAX_SHARED_ARRAYS))
    fail("line %d: too many shared arrays, or an alignment of more than %u", line, RED_ZONE);
  const uint32_t host = offset + RED_ZONE * (block->arrays.size() + 1);
  block->arrays.push_back({offset, host, bytes});
  if (state.check)
    for (uint32_t i = 0; i < bytes; i++) block->cells[host + i].flags = ALLOCATED;
  return host;
}

uint32_t shared_address(const void* p) {
  return uint32_t(static_cast<const char*>(p) - state.lane->block->shared) + SHARED_ADDRESS;
}

char* shared_pointer(uint32_t address, int bytes, int line) {
  Block* block = state.lane->block;
  const uint32_t offset = address - SHARED_ADDRESS;
  if (address % bytes) fail("shared address misaligned at line %d", line);
  for (auto& array : block->arrays)
    if (offset >= array.host_offset && offset + bytes <= array.host_offset + array.bytes)
      return block->shared + offset;
  fail("shared address out of bounds at line %d", line);
}

// ---- cp.async
void cp_async(uint32_t dst, const void* src, int bytes, int src_bytes, int line) {
  Lane* lane = state.lane;
  char* to = shared_pointer(dst, bytes, line);
  const char* from = static_cast<const char*>(src);
  if (src_bytes && reinterpret_cast<uintptr_t>(src) % bytes)
    fail("cp.async source misaligned at line %d", line);
  if (state.check) {
    if (src_bytes) check_access(src, src_bytes, false, false, nullptr, line);
    check_access(to, bytes, true, false, nullptr, line);
    mark_in_flight(lane->block, to, bytes);
  } else if (src_bytes) {
    (void)*static_cast<const volatile char*>(
        from);  // a source out of bounds faults here, where it was issued
  }
  memset(to, 0xff, bytes);
  lane->copies.push_back({to, from, bytes, src_bytes, lane->copy_group});
}

void cp_async_commit() { state.lane->copy_group++; }

void cp_async_wait(int newest) {
  Lane* lane = state.lane;
  size_t done = 0;
  for (; done < lane->copies.size() && lane->copies[done].group < lane->copy_group - newest; done++) {
    const Copy& copy = lane->copies[done];
    memset(copy.dst, 0, copy.bytes);
    memcpy(copy.dst, copy.src, copy.src_bytes);
    if (state.check) mark_landed(lane->block, copy.dst, copy.bytes, lane->now);
  }
  lane->copies.erase(lane->copies.begin(), lane->copies.begin() + done);
}

}  // namespace simt
