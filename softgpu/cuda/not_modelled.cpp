// Calls that have nothing to do here, or that are refused.
#include "runtime.h"

using namespace softgpu;

extern "C" {

cudaError_t cudaProfilerStart(void) { return cudaSuccess; }
cudaError_t cudaProfilerStop(void) { return cudaSuccess; }

// ---- what is not modelled

#define UNSUPPORTED(name, ...) \
  cudaError_t name(__VA_ARGS__) { return result(cudaErrorNotSupported); }
UNSUPPORTED(cudaCreateSurfaceObject, cudaSurfaceObject_t*, const cudaResourceDesc*)
UNSUPPORTED(cudaDestroySurfaceObject, cudaSurfaceObject_t)
UNSUPPORTED(cudaCreateTextureObject, cudaTextureObject_t*, const cudaResourceDesc*, const cudaTextureDesc*, const cudaResourceViewDesc*)
UNSUPPORTED(cudaDestroyTextureObject, cudaTextureObject_t)
UNSUPPORTED(cudaGetChannelDesc, cudaChannelFormatDesc*, cudaArray_const_t)
UNSUPPORTED(cudaGetTextureObjectResourceDesc, cudaResourceDesc*, cudaTextureObject_t)
UNSUPPORTED(cudaGetTextureObjectTextureDesc, cudaTextureDesc*, cudaTextureObject_t)
UNSUPPORTED(cudaFreeArray, cudaArray_t)
UNSUPPORTED(cudaMallocArray, cudaArray_t*, const cudaChannelFormatDesc*, size_t, size_t, unsigned)
UNSUPPORTED(cudaMalloc3DArray, cudaArray_t*, const cudaChannelFormatDesc*, cudaExtent, unsigned)
UNSUPPORTED(cudaMemcpy2DFromArray, void*, size_t, cudaArray_const_t, size_t, size_t, size_t, size_t, cudaMemcpyKind)
UNSUPPORTED(cudaMemcpy2DFromArrayAsync, void*, size_t, cudaArray_const_t, size_t, size_t, size_t, size_t, cudaMemcpyKind, cudaStream_t)
UNSUPPORTED(cudaMemcpy2DToArray, cudaArray_t, size_t, size_t, const void*, size_t, size_t, size_t, cudaMemcpyKind)
UNSUPPORTED(cudaMemcpy2DToArrayAsync, cudaArray_t, size_t, size_t, const void*, size_t, size_t, size_t, cudaMemcpyKind, cudaStream_t)
UNSUPPORTED(cudaMemcpy3D, const cudaMemcpy3DParms*)
UNSUPPORTED(cudaMemcpy3DAsync, const cudaMemcpy3DParms*, cudaStream_t)
cudaError_t cudaMemAdvise(const void*, size_t, cudaMemoryAdvise, int) { return cudaSuccess; }
cudaError_t cudaMemPrefetchAsync(const void*, size_t, int, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* p, int) { return *p = (cudaMemPool_t)8, cudaSuccess; }
cudaError_t cudaDeviceGetMemPool(cudaMemPool_t* p, int) { return *p = (cudaMemPool_t)8, cudaSuccess; }
cudaError_t cudaDeviceSetMemPool(int, cudaMemPool_t) { return cudaSuccess; }
cudaError_t cudaMemPoolCreate(cudaMemPool_t* p, const cudaMemPoolProps*) { return *p = (cudaMemPool_t)8, cudaSuccess; }
cudaError_t cudaMemPoolDestroy(cudaMemPool_t) { return cudaSuccess; }
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) { return cudaSuccess; }
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t, cudaMemPoolAttr, void* v) { return *(u64*)v = 0, cudaSuccess; }
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return cudaSuccess; }

}  // extern "C"
