// decode_sum: the wires of all ranks to their sum.   caller: cutpq/codecs/launch.py
// Terms are added in float32 and in rank order, and the sum is rounded once. A thread loads its codes of every rank
// before it adds, so that all loads are in flight together. It takes GROUPS_OF_THREAD groups of the same codec block,
// because their scales and addresses, and whether half2 can add them, need finding out only once. blockIdx.y is the
// share: with one rank and many shares the kernel decodes the gathered result of a two-shot all-reduce.
#include "target.cuh"
#include "tile/block_wire.cuh"
#include "tile/eight.cuh"
#include "tile/rank_sum.cuh"
#include "tile/share.cuh"

// Groups from one of a thread's to its next: so many threads share a codec block, and store neighbouring groups at once.
constexpr u32 APART = GROUPS_OF_BLOCK / GROUPS_OF_THREAD;

extern "C" __global__ void __launch_bounds__(THREADS)
decode_sum(const u8* __restrict__ wires,  // wires of RANKS ranks
           act_t* __restrict__ y,         // (n,), aligned to 16 bytes
           int wire_bytes,                // stride between ranks' wires
           int n) {
  const Share share = share_of<BlockWire>(n, gridDim.y, blockIdx.y);
  const u32 step = gridDim.x * THREADS;
  for (u32 at = blockIdx.x * THREADS + threadIdx.x; at / APART < u32(share.granules); at += step) {
    const u32 group = at / APART * GROUPS_OF_BLOCK + at % APART;
    float sum[8 * GROUPS_OF_THREAD];
    sum_of_ranks<GROUPS_OF_THREAD>(sum, wires + share.offset, wire_bytes, share.granules, group);
#pragma unroll
    for (int i = 0; i < GROUPS_OF_THREAD; i++)
      store_eight(y, share.first * BLOCK + (group + i * APART) * 8, n, sum + 8 * i);
  }
}
