// Devices, their properties, and errors.
#include <cstdio>
#include <cstring>

#include "runtime.h"

namespace softgpu {

int attribute(cudaDeviceAttr a) {
  const auto& s = settings();
  const bool hopper = s.arch >= 90;
  switch (int(a)) {
    case cudaDevAttrMaxThreadsPerBlock: return 1024;
    case cudaDevAttrMaxBlockDimX: case cudaDevAttrMaxBlockDimY: return 1024;
    case cudaDevAttrMaxBlockDimZ: return 64;
    case cudaDevAttrMaxGridDimX: return 2147483647;
    case cudaDevAttrMaxGridDimY: case cudaDevAttrMaxGridDimZ: return 65535;
    case cudaDevAttrMaxSharedMemoryPerBlock: return 48 << 10;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: return (hopper ? 227 : s.arch == 80 ? 163 : 99) << 10;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return (hopper ? 228 : s.arch == 80 ? 164 : 100) << 10;
    case cudaDevAttrReservedSharedMemoryPerBlock: return 1024;
    case cudaDevAttrTotalConstantMemory: return 64 << 10;
    case cudaDevAttrWarpSize: return 32;
    case cudaDevAttrMaxRegistersPerBlock: case cudaDevAttrMaxRegistersPerMultiprocessor: return 65536;
    case cudaDevAttrClockRate: return 1980000;
    case cudaDevAttrMemoryClockRate: return 2619000;
    case cudaDevAttrGlobalMemoryBusWidth: return 5120;
    case cudaDevAttrMultiProcessorCount: return s.sms;
    case cudaDevAttrL2CacheSize: return 50 << 20;
    case cudaDevAttrMaxThreadsPerMultiProcessor: return hopper || s.arch == 80 ? 2048 : 1536;
    case cudaDevAttrMaxBlocksPerMultiprocessor: return 32;
    case cudaDevAttrComputeCapabilityMajor: return s.arch / 10;
    case cudaDevAttrComputeCapabilityMinor: return s.arch % 10;
    case cudaDevAttrUnifiedAddressing: case cudaDevAttrManagedMemory: case cudaDevAttrConcurrentKernels: case cudaDevAttrCanMapHostMemory:
    case cudaDevAttrConcurrentManagedAccess: case cudaDevAttrStreamPrioritiesSupported: case cudaDevAttrGlobalL1CacheSupported:
    case cudaDevAttrLocalL1CacheSupported: case cudaDevAttrMemoryPoolsSupported: case cudaDevAttrCooperativeLaunch: case cudaDevAttrComputePreemptionSupported:
    case cudaDevAttrGpuOverlap: return 1;
    case cudaDevAttrAsyncEngineCount: return 3;
    case cudaDevAttrPciBusId: return 1;
    default: return 0;
  }
}
static thread_local cudaError_t last = cudaSuccess;

cudaError_t result(int code) {
  if (code) last = cudaError_t(code);
  return cudaError_t(code);
}
cudaError_t on(void* stream, std::function<int()> given) {
  const auto work = [given = std::move(given)] { return end_chain(), given(); };
  if (captured(stream, work)) return cudaSuccess;
  return result(submit(stream, work));
}
}  // namespace softgpu

using namespace softgpu;

static void bus_id(char* text, int n, int device) { std::snprintf(text, n, "0000:%02X:00.0", device + 1); }


extern "C" {

const char* cudaGetErrorName(cudaError_t e) {
  switch (int(e)) {
    case 0: return "cudaSuccess";
    case 1: return "cudaErrorInvalidValue";
    case 2: return "cudaErrorMemoryAllocation";
    case 101: return "cudaErrorInvalidDevice";
    case 201: return "cudaErrorDeviceUninitialized";
    case 400: return "cudaErrorInvalidResourceHandle";
    case 600: return "cudaErrorNotReady";
    case 700: return "cudaErrorIllegalAddress";
    case 702: return "cudaErrorLaunchTimeout";
    case 704: return "cudaErrorPeerAccessAlreadyEnabled";
    case 710: return "cudaErrorAssert";
    case 715: return "cudaErrorIllegalInstruction";
    case 716: return "cudaErrorMisalignedAddress";
    case 719: return "cudaErrorLaunchFailure";
    case 801: return "cudaErrorNotSupported";
    case 900: return "cudaErrorStreamCaptureUnsupported";
    case 901: return "cudaErrorStreamCaptureInvalidated";
    default: return "cudaErrorUnknown";
  }
}
const char* cudaGetErrorString(cudaError_t e) { return cudaGetErrorName(e); }
cudaError_t cudaGetLastError(void) {
  cudaError_t e = last;
  last = cudaSuccess;
  return e;
}

cudaError_t cudaDriverGetVersion(int* v) { return *v = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* v) { return *v = CUDART_VERSION, cudaSuccess; }

cudaError_t cudaGetDevice(int* d) { return *d = current_device(), cudaSuccess; }
cudaError_t cudaSetDevice(int d) {
  if (d < 0 || d >= settings().devices) return result(cudaErrorInvalidDevice);
  set_current_device(d);
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* n) { return *n = settings().devices, *n ? cudaSuccess : result(cudaErrorNoDevice); }
cudaError_t cudaDeviceGetAttribute(int* v, cudaDeviceAttr a, int d) {
  if (d < 0 || d >= settings().devices) return result(cudaErrorInvalidDevice);
  *v = a == cudaDevAttrPciBusId ? d + 1 : attribute(a);
  return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* text, int n, int d) { return bus_id(text, n, d), cudaSuccess; }
cudaError_t cudaDeviceGetByPCIBusId(int* d, const char* text) {
  for (*d = 0; *d < settings().devices; ++*d) {
    char own[32];
    bus_id(own, sizeof own, *d);
    if (!strcasecmp(own, text)) return cudaSuccess;
  }
  return result(cudaErrorInvalidDevice);
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int d) {
  if (d < 0 || d >= settings().devices) return result(cudaErrorInvalidDevice);
  std::memset(p, 0, sizeof *p);
  std::snprintf(p->name, sizeof p->name, "softgpu sm_%d", settings().arch);
  p->totalGlobalMem = settings().memory;
  p->sharedMemPerBlock = attribute(cudaDevAttrMaxSharedMemoryPerBlock);
  p->sharedMemPerBlockOptin = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  p->sharedMemPerMultiprocessor = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  p->reservedSharedMemPerBlock = 1024;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->warpSize = 32;
  p->maxThreadsPerBlock = 1024;
  p->maxThreadsPerMultiProcessor = attribute(cudaDevAttrMaxThreadsPerMultiProcessor);
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024, p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 2147483647, p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->clockRate = attribute(cudaDevAttrClockRate);
  p->totalConstMem = 64 << 10;
  p->major = settings().arch / 10, p->minor = settings().arch % 10;
  p->multiProcessorCount = settings().sms;
  p->concurrentKernels = p->unifiedAddressing = p->managedMemory = p->canMapHostMemory = 1;
  p->memoryClockRate = attribute(cudaDevAttrMemoryClockRate);
  p->memoryBusWidth = attribute(cudaDevAttrGlobalMemoryBusWidth);
  p->l2CacheSize = attribute(cudaDevAttrL2CacheSize);
  p->pciBusID = d + 1;
  p->cooperativeLaunch = 1, p->asyncEngineCount = 3, p->maxBlocksPerMultiProcessor = 32;
  p->memoryPoolsSupported = 1;
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize(void) { return result(capturing_anywhere() ? cudaErrorStreamCaptureUnsupported : wait_for(false)); }
cudaError_t cudaDeviceCanAccessPeer(int* can, int a, int b) { return *can = a != b, cudaSuccess; }
cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) { return cudaSuccess; }
cudaError_t cudaDeviceDisablePeerAccess(int) { return cudaSuccess; }
cudaError_t cudaDeviceGetLimit(size_t* v, cudaLimit) { return *v = 1024, cudaSuccess; }
cudaError_t cudaDeviceSetLimit(cudaLimit, size_t) { return cudaSuccess; }

}  // extern "C"
