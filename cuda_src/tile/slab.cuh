// The memory of a rank that its peers can reach, and how blocks of the same number meet on all ranks.
//
//   flags    [meeting][block][rank]: the epoch in which that rank's block came here; in the waiter's own memory
//   epochs   [block]: how many sums this rank's block has finished; nobody else reads them
//   data     what kernels lay down for their peers: two halves, for even and for odd epochs
//
// Epochs only grow and live on the device, so that a launch can be replayed. A block waits for the blocks of its
// own number alone, since those have made what it reads.
#pragma once
#include "../ptx/memory_order.cuh"
#include "../ptx/timer.cuh"
#include "../target.cuh"

using slab_t = u8*;

constexpr int MEETINGS = 2;
constexpr int FLAGS = MEETINGS * GRID * RANKS;
constexpr size_t DATA_AT = (size_t(FLAGS + GRID) * 4 + 255) / 256 * 256;

struct Slabs {
  const slab_t* slabs;
  int rank;
  u32 epoch;  // of this sum
  size_t half;

  __device__ __forceinline__ Slabs(const slab_t* slabs, int rank, u32 half_bytes) : slabs(slabs), rank(rank) {
    epoch = epochs()[blockIdx.x] + 1;
    half = DATA_AT + size_t(epoch % 2) * half_bytes;
  }

  __device__ __forceinline__ u32* flag(int owner, int meeting, int of_rank) const {
    return reinterpret_cast<u32*>(slabs[owner]) + (meeting * GRID + blockIdx.x) * RANKS + of_rank;
  }
  __device__ __forceinline__ u32* epochs() const { return reinterpret_cast<u32*>(slabs[rank]) + FLAGS; }
  // Byte `offset` of what the owner lays down in this epoch.
  __device__ __forceinline__ u8* data(int owner, size_t offset) const { return slabs[owner] + half + offset; }

  // Returns when this block has come to the meeting on all ranks, and what they wrote before can be read. False if
  // one did not come in time: *status is 1 + its number, and what this kernel computes is void.
  __device__ __forceinline__ bool meet(int meeting, u32* smem_missing, u32* status, u32 timeout_us) const {
    __syncthreads();  // all of this block's writes are done
    const int peer = threadIdx.x;
    if (peer < RANKS) {
      st_release_sys(flag(peer, meeting, rank), epoch);
      smem_missing[peer] = !has_come(flag(rank, meeting, peer), timeout_us);
      if (smem_missing[peer]) st_relaxed_sys(status, 1 + peer);
    }
    __syncthreads();  // and what the waiting threads have learnt, all know
    u32 missing = 0;
#pragma unroll
    for (int r = 0; r < RANKS; r++) missing |= smem_missing[r];
    return missing == 0;
  }

  // The last act of a kernel: the next sum is another epoch.
  __device__ __forceinline__ void finish() const {
    __syncthreads();  // all have read the epoch
    if (threadIdx.x == 0) epochs()[blockIdx.x] = epoch;
  }

 private:
  // A peer may be ahead: its flag then shows a later epoch.
  __device__ __forceinline__ bool has_come(const u32* flag, u32 timeout_us) const {
    const u64 start = timer_ns();
    while (int(ld_acquire_sys(flag) - epoch) < 0) {
      if (timer_ns() - start > u64(timeout_us) * 1000) return false;
      __nanosleep(40);
    }
    return true;
  }
};
