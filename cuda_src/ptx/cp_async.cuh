// Asynchronous copies from global to shared memory (sm_80).
#pragma once
#include "shared_address.cuh"

// cp.async.cg, 16 bytes, bypassing L1: *dst = *src, or zeros without reading src where `valid` is false.
DEVICE void cp_async_16(u32 dst, const void* src, bool valid = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(__cvta_generic_to_global(src)),
               "r"(valid ? 16 : 0)
               : "memory");
}

// createpolicy: a cache policy that evicts lines from L2 first, for data that is read once.
DEVICE u64 evict_first_policy() {
  u64 policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// cp.async.cg, 16 bytes, under an L2 policy: *dst = *src, or zeros without reading src where `valid` is false.
DEVICE void cp_async_16_hint(u32 dst, const void* src, u64 policy, bool valid) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(dst),
               "l"(__cvta_generic_to_global(src)), "r"(valid ? 16 : 0), "l"(policy)
               : "memory");
}

// cp.async.commit_group: the copies issued since the last commit become one group, which may be empty.
DEVICE void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// cp.async.wait_group: waits for all but the newest NEWEST groups of this thread; their data is then visible to this
// thread alone.
template <int NEWEST>
DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(NEWEST) : "memory");
}
