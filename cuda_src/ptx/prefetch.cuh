// Prefetches into L2: requests that nobody waits for.
#pragma once
#include "../target.cuh"

// prefetch.global.L2: the line of 128 bytes that holds `from`.
DEVICE void prefetch_line(const void* from) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(from)));
}

#if __CUDA_ARCH__ >= 900
// cp.async.bulk.prefetch.L2: the bytes from `from` on; both are multiples of 16.
DEVICE void prefetch_bulk(const void* from, u32 bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(__cvta_generic_to_global(from)), "r"(bytes));
}
#endif
