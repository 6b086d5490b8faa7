// Weaker memory operations than the kernels use: what planted bugs and the tests of the race detector put in their place.
#pragma once
#include "target.cuh"

#define LOAD(NAME, PTX)                                                                            \
  DEVICE u32 NAME(const u32* p) {                                                                  \
    u32 value;                                                                                     \
    asm volatile(PTX " %0, [%1];" : "=r"(value) : "l"(__cvta_generic_to_global(p)) : "memory");    \
    return value;                                                                                  \
  }
#define STORE(NAME, PTX)                                                                           \
  DEVICE void NAME(u32* p, u32 value) {                                                            \
    asm volatile(PTX " [%0], %1;" ::"l"(__cvta_generic_to_global(p)), "r"(value) : "memory");      \
  }
LOAD(ld_acquire, "ld.acquire.gpu.global.u32")  // sees no writes before a release on another device
LOAD(ld_acquire_cta, "ld.acquire.cta.global.u32")
LOAD(ld_relaxed_sys, "ld.relaxed.sys.global.u32")
STORE(st_release, "st.release.gpu.global.u32")
STORE(st_release_cta, "st.release.cta.global.u32")

DEVICE u32 atomic_add_relaxed(u32* p, u32 value) {
  u32 old;
  asm volatile("atom.relaxed.gpu.global.add.u32 %0, [%1], %2;"
               : "=r"(old)
               : "l"(__cvta_generic_to_global(p)), "r"(value)
               : "memory");
  return old;
}
