#include "memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <shared_mutex>

#include "settings.h"

namespace softgpu {

static thread_local int device = 0;
int current_device() { return device; }
void set_current_device(int d) { device = d; }

namespace memory {

static std::shared_mutex lock;
static std::map<u64, Allocation>& table() {
  static auto* made = new std::map<u64, Allocation>;  // never destroyed: arrays are freed while Python ends
  return *made;
}
static std::map<u64, u64>& freed() {
  static auto* made = new std::map<u64, u64>;
  return *made;
}
static std::atomic<u64> in_use[16];

// Large memory is a file without a name, so that other processes can map it (CUDA IPC).
static bool map_file(Allocation& a, u64 size) {
  a.mapped = (size + 4095) / 4096 * 4096;
  a.fd = memfd_create("softgpu", MFD_CLOEXEC);
  if (a.fd < 0 || ftruncate(a.fd, a.mapped)) return false;
  void* p = mmap(nullptr, a.mapped, PROT_READ | PROT_WRITE, MAP_SHARED, a.fd, 0);
  a.raw = p;
  return p != MAP_FAILED;
}

void* allocate(u64 size, Allocation::Kind kind, int device) {
  const u64 wanted = std::max<u64>(size, 1), large = 1 << 20, too_large_to_fill = 64 << 20;
  if (kind == Allocation::Device && in_use[device & 15] + wanted > settings().memory) return nullptr;
  Allocation a;
  a.kind = kind, a.device = device;
  if (kind == Allocation::Device && wanted >= large ? !map_file(a, wanted) : posix_memalign(&a.raw, 512, wanted + 512) != 0)
    return nullptr;
  a.begin = u64(a.raw), a.end = a.begin + size;
  if (kind == Allocation::Device && settings().fill && size <= too_large_to_fill) std::memset(a.raw, 0xff, size);
  std::unique_lock guard(lock);
  in_use[device & 15] += wanted;
  table()[a.begin] = a;
  freed().erase(a.begin);
  return a.raw;
}

void add(const Allocation& a) {
  std::unique_lock guard(lock);
  table()[a.begin] = a;
}

bool remove(u64 begin, Allocation* out) {
  std::unique_lock guard(lock);
  auto found = table().find(begin);
  if (found == table().end()) return false;
  if (out) *out = found->second;
  freed()[begin] = found->second.end;
  if (freed().size() > 10000) freed().erase(freed().begin());
  table().erase(found);
  return true;
}

bool release(void* p) {
  Allocation a;
  if (!remove((u64)p, &a)) return false;
  in_use[a.device & 15] -= std::max<u64>(a.end - a.begin, 1);
  if (a.mapped) {
    munmap(a.raw, a.mapped);
    if (a.fd >= 0) close(a.fd);
  } else {
    free(a.raw);
  }
  return true;
}

bool find(u64 address, Allocation* out) {
  std::shared_lock guard(lock);
  auto after = table().upper_bound(address);
  if (after == table().begin()) return false;
  const Allocation& a = std::prev(after)->second;
  if (address >= a.end && !(a.begin == a.end && address == a.begin)) return false;
  *out = a;
  return true;
}

std::string describe(u64 address) {
  std::shared_lock guard(lock);
  char text[200];
  auto after = table().upper_bound(address);
  if (after != table().begin()) {
    const Allocation& a = std::prev(after)->second;
    if (address < a.end) {
      std::snprintf(text, sizeof text, "reaches beyond the end of an allocation of %llu bytes at %#llx", (unsigned long long)(a.end - a.begin), (unsigned long long)a.begin);
      return text;
    }
    if (address - a.end < 1 << 20) {
      std::snprintf(text, sizeof text, "%llu bytes past the end of an allocation of %llu bytes at %#llx", (unsigned long long)(address - a.end), (unsigned long long)(a.end - a.begin), (unsigned long long)a.begin);
      return text;
    }
  }
  auto old = freed().upper_bound(address);
  if (old != freed().begin() && address < std::prev(old)->second) return "in memory that has been freed";
  if (address < 4096) return "a null pointer";
  return "not memory of the device";
}

u64 used(int device) { return in_use[device & 15]; }

}  // namespace memory
}  // namespace softgpu
