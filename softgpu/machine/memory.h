// What memory the device has handed out. Addresses of the device are addresses of the host.
#pragma once
#include "../ptx/text.h"

namespace softgpu {

struct Allocation {
  u64 begin = 0, end = 0;
  enum Kind { Device, Host, Managed, Symbol, Imported } kind = Device;
  int device = 0;
  int fd = -1;          // of memory that other processes can map
  u64 mapped = 0;       // bytes to unmap
  void* raw = nullptr;  // what the host's allocator gave
};

int current_device();
void set_current_device(int device);

namespace memory {
void* allocate(u64 size, Allocation::Kind kind, int device);  // null: none left
bool release(void* p);
void add(const Allocation& a);
bool remove(u64 begin, Allocation* out = nullptr);
bool find(u64 address, Allocation* out);
std::string describe(u64 address);  // "16 bytes past the end of ...", for messages
u64 used(int device);
}  // namespace memory

}  // namespace softgpu
