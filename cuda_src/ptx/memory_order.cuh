// Flags and counters between blocks: a release makes known what came before it, an acquire learns it.
#pragma once
#include "../target.cuh"

// ld.acquire.gpu: *p, and all that was done before the release that wrote it.
DEVICE u32 ld_acquire(const u32* p CALL_SITE) {
#ifdef CUTPQ_HOST
  return simt::atomic_load(p, true, line);
#else
  u32 value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
               : "=r"(value)
               : "l"(__cvta_generic_to_global(p))
               : "memory");
  return value;
#endif
}

// ld.relaxed.gpu: *p, and nothing else.
DEVICE u32 ld_relaxed(const u32* p CALL_SITE) {
#ifdef CUTPQ_HOST
  return simt::atomic_load(p, false, line);
#else
  u32 value;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];"
               : "=r"(value)
               : "l"(__cvta_generic_to_global(p))
               : "memory");
  return value;
#endif
}

// st.release.gpu: *p = value, after all that this thread did and knew before.
UNCHECKED DEVICE void st_release(u32* p, u32 value CALL_SITE) {
#ifdef CUTPQ_HOST
  simt::before_atomic(p, 4, simt::STORE_RELEASE, line);
  *p = value;
#else
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(__cvta_generic_to_global(p)), "r"(value)
               : "memory");
#endif
}

// st.relaxed.gpu: *p = value, ordered with nothing.
UNCHECKED DEVICE void st_relaxed(u32* p, u32 value CALL_SITE) {
#ifdef CUTPQ_HOST
  simt::before_atomic(p, 4, simt::STORE_RELAXED, line);
  *p = value;
#else
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(__cvta_generic_to_global(p)), "r"(value)
               : "memory");
#endif
}

// atom.acq_rel.gpu.add: adds to *p and returns what was there; acquires and releases.
DEVICE u32 atomic_add_acq_rel(u32* p, u32 value CALL_SITE) {
#ifdef CUTPQ_HOST
  return simt::modify(p, [&](u32 old) { return old + value; }, simt::MODIFY_ACQ_REL, line);
#else
  u32 old;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;"
               : "=r"(old)
               : "l"(__cvta_generic_to_global(p)), "r"(value)
               : "memory");
  return old;
#endif
}

// atom.relaxed.gpu.add: adds to *p and returns what was there; orders nothing.
DEVICE u32 atomic_add_relaxed(u32* p, u32 value CALL_SITE) {
#ifdef CUTPQ_HOST
  return simt::modify(p, [&](u32 old) { return old + value; }, simt::MODIFY_RELAXED, line);
#else
  u32 old;
  asm volatile("atom.relaxed.gpu.global.add.u32 %0, [%1], %2;"
               : "=r"(old)
               : "l"(__cvta_generic_to_global(p)), "r"(value)
               : "memory");
  return old;
#endif
}

// ld.acquire.sys: as ld_acquire, of what another device may have written.
DEVICE u32 ld_acquire_sys(const u32* p CALL_SITE) {
#ifdef CUTPQ_HOST
  return simt::atomic_load(p, true, line, simt::SYSTEM_SCOPE);
#else
  u32 value;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];"
               : "=r"(value)
               : "l"(__cvta_generic_to_global(p))
               : "memory");
  return value;
#endif
}

// ld.relaxed.sys: *p of any device, and nothing else.
DEVICE u32 ld_relaxed_sys(const u32* p CALL_SITE) {
#ifdef CUTPQ_HOST
  return simt::atomic_load(p, false, line, simt::SYSTEM_SCOPE);
#else
  u32 value;
  asm volatile("ld.relaxed.sys.global.u32 %0, [%1];"
               : "=r"(value)
               : "l"(__cvta_generic_to_global(p))
               : "memory");
  return value;
#endif
}

// st.release.sys: as st_release, for other devices and the host.
UNCHECKED DEVICE void st_release_sys(u32* p, u32 value CALL_SITE) {
#ifdef CUTPQ_HOST
  simt::before_atomic(p, 4, simt::STORE_RELEASE, line, simt::SYSTEM_SCOPE);
  *p = value;
#else
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(__cvta_generic_to_global(p)), "r"(value)
               : "memory");
#endif
}

// st.relaxed.sys: *p = value for other devices and the host, ordered with nothing.
UNCHECKED DEVICE void st_relaxed_sys(u32* p, u32 value CALL_SITE) {
#ifdef CUTPQ_HOST
  simt::before_atomic(p, 4, simt::STORE_RELAXED, line, simt::SYSTEM_SCOPE);
  *p = value;
#else
  asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(__cvta_generic_to_global(p)), "r"(value)
               : "memory");
#endif
}
