// Memory of the device, copies and memsets.
#include <cstdio>
#include <cstring>

#include "runtime.h"

using namespace softgpu;

namespace {

// A copy that leaves an allocation of the device would have failed or destroyed something there.
bool fits(const void* p, size_t n, const char* what) {
  Allocation a;
  if (!n || !memory::find((u64)p, &a) || (u64)p + n <= a.end) return true;
  std::fprintf(stderr, "softgpu: %s of %zu bytes at %p %s\n", what, n, p, memory::describe((u64)p).c_str());
  return false;
}
int copy(void* d, const void* s, size_t n) {
  if (!fits(d, n, "a copy to") || !fits(s, n, "a copy from")) return cudaErrorInvalidValue;
  std::memmove(d, s, n);
  return 0;
}
int copy2d(void* d, size_t dp, const void* s, size_t sp, size_t w, size_t h) {
  for (size_t y = 0; y < h; y++)
    if (int e = copy((char*)d + y * dp, (const char*)s + y * sp, w)) return e;
  return 0;
}
bool known(const void* p) {
  Allocation a;
  return memory::find((u64)p, &a);
}
// A copy between the device and memory of the host that CUDA does not know: read before, or written before, it returns.
cudaError_t copy_on(void* stream, void* d, const void* s, size_t n) {
  if (!created(stream) || is_capturing(stream) || (known(d) && known(s))) return on(stream, [=] { return copy(d, s, n); });
  if (!known(s)) {
    auto staged = std::make_shared<std::vector<char>>((const char*)s, (const char*)s + n);
    return on(stream, [=] { return copy(d, staged->data(), n); });
  }
  on(stream, [=] { return copy(d, s, n); });
  return result(created(stream)->drain());
}
}  // namespace

extern "C" {

cudaError_t cudaMalloc(void** p, size_t n) {
  if (capturing_anywhere()) return result(cudaErrorStreamCaptureUnsupported);
  *p = nullptr;
  if (!n) return cudaSuccess;
  *p = memory::allocate(n, Allocation::Device, current_device());
  return *p ? cudaSuccess : result(cudaErrorMemoryAllocation);
}
cudaError_t cudaFree(void* p) {
  if (!p) return cudaSuccess;
  wait_for(false);  // as CUDA does
  return memory::release(p) ? cudaSuccess : result(cudaErrorInvalidValue);
}
cudaError_t cudaMallocManaged(void** p, size_t n, unsigned) { return *p = memory::allocate(n, Allocation::Managed, current_device()), cudaSuccess; }
cudaError_t cudaMallocAsync(void** p, size_t n, cudaStream_t) { return cudaMalloc(p, n); }
cudaError_t cudaMallocFromPoolAsync(void** p, size_t n, cudaMemPool_t, cudaStream_t) { return cudaMalloc(p, n); }
cudaError_t cudaFreeAsync(void* p, cudaStream_t q) {
  return on(q, [=] { return memory::release(p) ? 0 : int(cudaErrorInvalidValue); });
}
cudaError_t cudaHostAlloc(void** p, size_t n, unsigned) {
  *p = memory::allocate(n, Allocation::Host, current_device());
  return *p ? cudaSuccess : result(cudaErrorMemoryAllocation);
}
cudaError_t cudaFreeHost(void* p) { return cudaFree(p); }
cudaError_t cudaHostRegister(void* p, size_t n, unsigned) {
  Allocation a;
  a.begin = (u64)p, a.end = a.begin + n, a.kind = Allocation::Host;
  memory::add(a);
  return cudaSuccess;
}
cudaError_t cudaHostUnregister(void* p) { return memory::remove((u64)p) ? cudaSuccess : result(cudaErrorInvalidValue); }
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *total = settings().memory;
  *free = *total - std::min<u64>(*total, memory::used(current_device()));
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* d, const void* s, size_t n, cudaMemcpyKind) {
  if (capturing_anywhere()) return result(cudaErrorStreamCaptureUnsupported);
  const cudaError_t given = on(nullptr, [=] { return copy(d, s, n); });
  return given || !settings().async_default ? given : result(default_stream()->drain());
}
cudaError_t cudaMemcpyAsync(void* d, const void* s, size_t n, cudaMemcpyKind, cudaStream_t q) { return copy_on(q, d, s, n); }
cudaError_t cudaMemcpyPeer(void* d, int, const void* s, int, size_t n) { return result(copy(d, s, n)); }
cudaError_t cudaMemcpyPeerAsync(void* d, int, const void* s, int, size_t n, cudaStream_t q) { return copy_on(q, d, s, n); }
cudaError_t cudaMemcpy2D(void* d, size_t dp, const void* s, size_t sp, size_t w, size_t h, cudaMemcpyKind) { return result(copy2d(d, dp, s, sp, w, h)); }
cudaError_t cudaMemcpy2DAsync(void* d, size_t dp, const void* s, size_t sp, size_t w, size_t h, cudaMemcpyKind, cudaStream_t q) {
  on(q, [=] { return copy2d(d, dp, s, sp, w, h); });
  return result(created(q) && !is_capturing(q) ? created(q)->drain() : 0);
}
cudaError_t cudaMemset(void* p, int v, size_t n) {
  return cudaMemsetAsync(p, v, n, nullptr);
}
cudaError_t cudaMemsetAsync(void* p, int v, size_t n, cudaStream_t q) {
  return on(q, [=] {
    if (!fits(p, n, "a memset")) return int(cudaErrorInvalidValue);
    std::memset(p, v, n);
    return 0;
  });
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* out, const void* p) {
  Allocation a;
  std::memset(out, 0, sizeof *out);
  if (!memory::find((u64)p, &a)) {
    out->type = cudaMemoryTypeUnregistered;
    out->device = -2;
    out->hostPointer = const_cast<void*>(p);
    return cudaSuccess;
  }
  out->device = a.device;
  out->type = a.kind == Allocation::Host ? cudaMemoryTypeHost : a.kind == Allocation::Managed ? cudaMemoryTypeManaged : cudaMemoryTypeDevice;
  out->devicePointer = const_cast<void*>(p);
  out->hostPointer = a.kind == Allocation::Host || a.kind == Allocation::Managed ? const_cast<void*>(p) : nullptr;
  return cudaSuccess;
}

}  // extern "C"
