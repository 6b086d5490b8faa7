// A slab is the memory of a rank that its peers can read and write. Its layout, and a barrier across ranks:
//
//   flags    [meeting][block][rank]: the epoch in which that rank's block reached the barrier; in the waiter's own slab
//   epochs   [block]: all-reduces that this rank's block has finished; private to the rank
//   sent     [block]: the epoch in which that block of this rank has stored its part of x; private, too
//   data     what ranks write for each other: two halves, for even and for odd epochs
//
// A meeting is one of the barriers in a kernel. Epochs only grow and live in device memory, so that a captured launch
// can be replayed. Block i waits for the blocks i of its peers only, because those wrote what it reads: blocks of a
// grid need not be resident together.
#pragma once
#include "../ptx/memory_order.cuh"
#include "../ptx/timer.cuh"
#include "../target.cuh"

using slab_t = u8*;

constexpr int MEETINGS = 2;
constexpr int FLAGS = MEETINGS * GRID * RANKS;
constexpr size_t DATA_AT = (size_t(FLAGS + 2 * GRID) * 4 + 255) / 256 * 256;
static_assert(GRID % 2 == 0, "a block of each half of the grid");

struct Slabs {
  const slab_t* slabs;
  int rank;
  u32 epoch;    // number of this all-reduce
  size_t half;  // byte offset of the half that this epoch uses

  __device__ __forceinline__ Slabs(const slab_t* slabs, int rank, u32 half_bytes) : slabs(slabs), rank(rank) {
    epoch = epochs()[blockIdx.x] + 1;
    half = DATA_AT + size_t(epoch % 2) * half_bytes;
  }

  __device__ __forceinline__ u32* flag(int owner, int meeting, int of_rank) const {
    return reinterpret_cast<u32*>(slabs[owner]) + (meeting * GRID + blockIdx.x) * RANKS + of_rank;
  }
  __device__ __forceinline__ u32* epochs() const { return reinterpret_cast<u32*>(slabs[rank]) + FLAGS; }
  __device__ __forceinline__ u32* sent() const { return epochs() + GRID; }
  // Address of byte `offset` of the owner's data in this epoch.
  __device__ __forceinline__ u8* data(int owner, size_t offset) const {
    return in_global(slabs[owner]) + half + offset;
  }

  // Barrier of this block across all ranks: what their blocks wrote before it can be read after it. Returns false if a
  // rank did not come within timeout_us; *status is then 1 + its number, and the result of the kernel is void.
  __device__ __forceinline__ bool meet(int meeting, u32* smem_missing, u32* status, u32 timeout_us) const {
    __syncthreads();  // all threads have written what the flags announce
    const int peer = threadIdx.x;
    if (peer < RANKS) {
      st_release_sys(flag(peer, meeting, rank), epoch);
      smem_missing[peer] = !wait_for<true>(flag(rank, meeting, peer), timeout_us);
      if (smem_missing[peer]) st_relaxed_sys(status, 1 + peer);
    }
    __syncthreads();  // all threads may read what the waiting threads have acquired, and smem_missing
    u32 missing = 0;
#pragma unroll
    for (int r = 0; r < RANKS; r++) missing |= smem_missing[r];
    return missing == 0;
  }

  // Lets a block of the second half of the grid wait until the one of its place in the first half has issued its stores,
  // so that the two do not use the links at once, and then wait at once. Nothing is read on the strength of it: no order
  // is asked for, and after timeout_us the block goes on. Blocks of the first half wait for none of the second, so that
  // they need not be resident together.
  __device__ __forceinline__ void follow_first_half(u32 timeout_us) const {
    if (blockIdx.x >= GRID / 2 && threadIdx.x == 0) wait_for<false>(sent() + blockIdx.x - GRID / 2, timeout_us);
    __syncthreads();  // thread 0 has waited
  }
  __device__ __forceinline__ void let_second_half_follow() const {
    if (blockIdx.x < GRID / 2 && threadIdx.x == 0) st_relaxed_sys(sent() + blockIdx.x, epoch);
  }

  // Ends this epoch; called last in a kernel.
  __device__ __forceinline__ void finish() const {
    __syncthreads();  // all threads have read the epoch
    if (threadIdx.x == 0) epochs()[blockIdx.x] = epoch;
  }

 private:
  // Spins until the flag shows this epoch or, from a peer that is ahead, a later one. The difference is signed so that
  // epochs may wrap around. Returns false after timeout_us.
  template <bool ACQUIRE>
  __device__ __forceinline__ bool wait_for(const u32* flag, u32 timeout_us) const {
    const u64 start = timer_ns();
    while (int((ACQUIRE ? ld_acquire_sys(flag) : ld_relaxed(flag)) - epoch) < 0) {
      if (timer_ns() - start > u64(timeout_us) * 1000) return false;
      __nanosleep(40);
    }
    return true;
  }
};
