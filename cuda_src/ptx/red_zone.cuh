// What kernels say to the race detector of the software device (softgpu/races); no GPU is given this.
#pragma once

// softgpu.red_zone, no instruction of the PTX ISA: nobody may touch these bytes of shared memory.
static __device__ __forceinline__ void forbid_shared(const void* from, unsigned bytes) {
  asm volatile("softgpu.red_zone %0, %1;" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(from))), "r"(bytes));
}
