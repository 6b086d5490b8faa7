// Flags and counters between blocks: an acquire that reads what a release wrote sees all writes before that release.
#pragma once
#include "../target.cuh"

// atom.acq_rel.gpu.add: adds to *p, returns the value before, and is both an acquire and a release on this GPU.
DEVICE u32 atomic_add_acq_rel(u32* p, u32 value) {
  u32 old;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;"
               : "=r"(old)
               : "l"(__cvta_generic_to_global(p)), "r"(value)
               : "memory");
  return old;
}

// ld.acquire.sys: *p, and all writes before the release that wrote it, also those of another device or the host.
DEVICE u32 ld_acquire_sys(const u32* p) {
  u32 value;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];"
               : "=r"(value)
               : "l"(__cvta_generic_to_global(p))
               : "memory");
  return value;
}

// ld.relaxed.gpu: *p as this GPU has it now, ordered with nothing.
DEVICE u32 ld_relaxed(const u32* p) {
  u32 value;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(__cvta_generic_to_global(p)) : "memory");
  return value;
}

// st.release.sys: *p = value, after all writes that this thread made or has seen, for other devices and the host.
DEVICE void st_release_sys(u32* p, u32 value) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(__cvta_generic_to_global(p)), "r"(value)
               : "memory");
}

// st.relaxed.sys: *p = value for other devices and the host, ordered with nothing.
DEVICE void st_relaxed_sys(u32* p, u32 value) {
  asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(__cvta_generic_to_global(p)), "r"(value)
               : "memory");
}
