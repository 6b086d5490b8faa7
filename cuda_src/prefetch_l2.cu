// prefetch_l2: asks L2 for the first bytes of every strip of a packed weight.   caller: cutpq/ops/prefetch.py
// Launched before a sum over the ranks, so that memory, which is idle while the sum travels, brings what the next product
// reads. The kernel ends when it has asked, not when the bytes have come. All strips take part, because the blocks of the
// product read them side by side. A thread makes one request of REQUEST bytes: a line, or from sm_90 on several at a time.
#include "ptx/prefetch.cuh"
#include "target.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
prefetch_l2(const u32* __restrict__ words,  // strips one after the other
            u32 strip_bytes,                // a multiple of 128
            u32 bytes) {                    // of each strip that are asked for: a multiple of 128, at most strip_bytes
  const u32 from = (blockIdx.x * THREADS + threadIdx.x) * REQUEST;
  if (from >= bytes) return;
  const u8* at = reinterpret_cast<const u8*>(words) + size_t(blockIdx.y) * strip_bytes + from;
#if __CUDA_ARCH__ >= 900
  prefetch_bulk(at, min(u32(REQUEST), bytes - from));
#else
  prefetch_line(at);
#endif
}
