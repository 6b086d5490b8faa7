// decode_sum_encode: the wires of a share from all ranks to the wire of their sum.   caller: cutpq/codecs/launch.py
// The middle of a two-shot all-reduce, in one pass: the sum itself stays in registers, added in float32 and in rank
// order. Where PACKED a thread takes sixteen numbers, else eight.
#include "target.cuh"
#include "tile/block_wire.cuh"
#include "tile/packed_adding.cuh"
#include "tile/rank_sum.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
decode_sum_encode(const u8* __restrict__ wires,  // wires of RANKS ranks
                  u8* __restrict__ total,        // the wire of the sum
                  int wire_bytes,                // stride between ranks' wires
                  int blocks) {                  // codec blocks of each wire
  if constexpr (PACKED) return add_packed(wires, total, wire_bytes, blocks);
  DYNAMIC_SHARED(smem);
  Carver carver(smem);
  u16* smem_scales = carver.take<u16>(BlockWire::SCRATCH);

  for (int tile = blockIdx.x; tile * BLOCKS_OF_TILE < blocks; tile += gridDim.x) {
    const u32 group = tile * THREADS + threadIdx.x;
    float sum[8] = {};
    if (group / GROUPS_OF_BLOCK < u32(blocks)) sum_of_ranks(sum, wires, wire_bytes, blocks, group);
    BlockWire::put(total, blocks, tile, sum, smem_scales);
  }
}
