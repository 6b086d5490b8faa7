// The driver API of contexts, errors and linking, as CuPy's driver.pyx calls it.
#include <cuda.h>

#include <string>

#include "runtime.h"

using namespace softgpu;

extern "C" {

// NVRTC asks, and where there is a driver it wants more of it than is public. CuPy does not ask.
CUresult cuInit(unsigned) { return CUDA_ERROR_NO_DEVICE; }
CUresult cuDriverGetVersion(int* v) { return *v = CUDA_VERSION, CUDA_SUCCESS; }
CUresult cuGetErrorName(CUresult e, const char** text) {
  switch (int(e)) {
    case 0: *text = "CUDA_SUCCESS"; break;
    case 1: *text = "CUDA_ERROR_INVALID_VALUE"; break;
    case 209: *text = "CUDA_ERROR_NO_BINARY_FOR_GPU"; break;
    case 218: *text = "CUDA_ERROR_INVALID_PTX"; break;
    case 500: *text = "CUDA_ERROR_NOT_FOUND"; break;
    case 700: *text = "CUDA_ERROR_ILLEGAL_ADDRESS"; break;
    case 701: *text = "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"; break;
    case 702: *text = "CUDA_ERROR_LAUNCH_TIMEOUT"; break;
    case 710: *text = "CUDA_ERROR_ASSERT"; break;
    case 715: *text = "CUDA_ERROR_ILLEGAL_INSTRUCTION"; break;
    case 716: *text = "CUDA_ERROR_MISALIGNED_ADDRESS"; break;
    case 719: *text = "CUDA_ERROR_LAUNCH_FAILED"; break;
    default: *text = "CUDA_ERROR_UNKNOWN";
  }
  return CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult e, const char** text) { return cuGetErrorName(e, text); }

CUresult cuDeviceGet(CUdevice* d, int n) { return *d = n, CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRelease(CUdevice) { return CUDA_SUCCESS; }
CUresult cuCtxGetCurrent(CUcontext* c) { return *c = (CUcontext)(u64)(16 + current_device()), CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext c) { return set_current_device((u64)c - 16), CUDA_SUCCESS; }
CUresult cuCtxCreate(CUcontext* c, unsigned, CUdevice d) { return *c = (CUcontext)(u64)(16 + d), CUDA_SUCCESS; }
CUresult cuCtxDestroy(CUcontext) { return CUDA_SUCCESS; }
CUresult cuCtxGetDevice(CUdevice* d) { return *d = current_device(), CUDA_SUCCESS; }
CUresult cuStreamGetCtx(CUstream, CUcontext* c) { return cuCtxGetCurrent(c); }

CUresult cuLinkCreate(unsigned, CUjit_option*, void**, CUlinkState* s) { return *s = (CUlinkState) new std::string, CUDA_SUCCESS; }
CUresult cuLinkAddData(CUlinkState s, CUjitInputType, void* data, size_t n, const char*, unsigned, CUjit_option*, void**) { return ((std::string*)s)->assign((char*)data, n), CUDA_SUCCESS; }
CUresult cuLinkAddFile(CUlinkState, CUjitInputType, const char*, unsigned, CUjit_option*, void**) { return CUDA_ERROR_NOT_SUPPORTED; }
CUresult cuLinkComplete(CUlinkState s, void** p, size_t* n) {
  *p = ((std::string*)s)->data(), *n = ((std::string*)s)->size();
  return CUDA_SUCCESS;
}
CUresult cuLinkDestroy(CUlinkState s) { return delete (std::string*)s, CUDA_SUCCESS; }

}  // extern "C"
