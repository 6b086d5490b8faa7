// Weaker memory operations than the kernels use, for the CPU runtime only: what planted bugs and the tests of the race
// detector put in their place.
#pragma once
#include "target.cuh"

// The value of *p as an acquire for this device alone: it sees no writes before a release on another device.
DEVICE u32 ld_acquire(const u32* p CALL_SITE) { return simt::atomic_load(p, true, line); }

// The value of *p; synchronizes with nothing, even across devices.
DEVICE u32 ld_relaxed_sys(const u32* p CALL_SITE) { return simt::atomic_load(p, false, line, simt::SYSTEM_SCOPE); }

// *p = value as a release for this device alone: a peer that reads it on another device acquires nothing.
UNCHECKED DEVICE void st_release(u32* p, u32 value CALL_SITE) {
  simt::before_atomic(p, 4, simt::STORE_RELEASE, line);
  *p = value;
}

// Adds to *p and returns the value before; synchronizes with nothing.
DEVICE u32 atomic_add_relaxed(u32* p, u32 value CALL_SITE) {
  return simt::modify(p, [&](u32 old) { return old + value; }, simt::MODIFY_RELAXED, line);
}
