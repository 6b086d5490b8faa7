// decode_sum: the wires of all ranks to their sum.   caller: cutpq/codecs/launch.py
// Terms are added in float32 and in rank order, and the sum is rounded once. A thread takes eight numbers and loads
// their codes of every rank before it adds, so that all loads are in flight together. blockIdx.y is the share: with one
// rank and many shares the kernel decodes the gathered result of a two-shot all-reduce.
#include "target.cuh"
#include "tile/block_wire.cuh"
#include "tile/eight.cuh"
#include "tile/rank_sum.cuh"
#include "tile/share.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
decode_sum(const u8* __restrict__ wires,  // wires of RANKS ranks
           act_t* __restrict__ y,         // (n,), aligned to 16 bytes
           int wire_bytes,                // stride between ranks' wires
           int n) {
  const Share share = share_of<BlockWire>(n, gridDim.y, blockIdx.y);
  const u32 step = gridDim.x * THREADS;
  for (u32 group = blockIdx.x * THREADS + threadIdx.x; group / GROUPS_OF_BLOCK < u32(share.granules); group += step) {
    float sum[8];
    sum_of_ranks<BlockWire>(sum, wires + share.offset, wire_bytes, share.granules, group);
    store_eight(y, share.first * BLOCK + group * 8, n, sum);
  }
}
