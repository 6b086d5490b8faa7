// Memory between processes: files without a name, opened through /proc.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>

#include "runtime.h"

using namespace softgpu;

namespace {

struct Handle {
  int pid, fd, device, pad;
  u64 size;
};

}  // namespace

extern "C" {

cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t* out, void* p) {
  Allocation a;
  if (!memory::find((u64)p, &a) || a.fd < 0) return result(cudaErrorInvalidValue);
  Handle h{getpid(), a.fd, a.device, 0, a.mapped};
  std::memset(out, 0, sizeof *out);
  std::memcpy(out, &h, sizeof h);
  return cudaSuccess;
}
cudaError_t cudaIpcOpenMemHandle(void** p, cudaIpcMemHandle_t handle, unsigned) {
  Handle h;
  std::memcpy(&h, &handle, sizeof h);
  if (h.pid == getpid()) return result(cudaErrorDeviceUninitialized);  // CUDA opens no handle of its own process
  char path[64];
  std::snprintf(path, sizeof path, "/proc/%d/fd/%d", h.pid, h.fd);
  int fd = open(path, O_RDWR | O_CLOEXEC);
  if (fd < 0) return result(cudaErrorInvalidValue);
  void* q = mmap(nullptr, h.size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  if (q == MAP_FAILED) return result(cudaErrorInvalidValue);
  Allocation a;
  a.begin = (u64)q, a.end = a.begin + h.size, a.kind = Allocation::Imported, a.device = current_device(), a.mapped = h.size, a.raw = q;
  memory::add(a);
  *p = q;
  return cudaSuccess;
}
cudaError_t cudaIpcCloseMemHandle(void* p) {
  Allocation a;
  if (!memory::remove((u64)p, &a) || a.kind != Allocation::Imported) return result(cudaErrorInvalidValue);
  munmap(a.raw, a.mapped);
  return cudaSuccess;
}
cudaError_t cudaIpcGetEventHandle(cudaIpcEventHandle_t*, cudaEvent_t) { return result(cudaErrorNotSupported); }
cudaError_t cudaIpcOpenEventHandle(cudaEvent_t*, cudaIpcEventHandle_t) { return result(cudaErrorNotSupported); }

}  // extern "C"
