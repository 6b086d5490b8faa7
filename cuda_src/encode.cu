// encode: numbers to the wire of a block codec.   caller: cutpq/codecs/launch.py
// A thread loads eight numbers (sixteen where PACKED) in 16-byte words, the threads of a codec block find its largest
// magnitude by shuffles, and each writes its codes: one pass over memory. blockIdx.y is the share, so that one launch
// writes the wires of all ranks. The bytes equal those of cutpq/codecs/formulas.py.
#include "target.cuh"
#include "tile/block_wire.cuh"
#include "tile/eight.cuh"
#include "tile/packed_e2m1.cuh"
#include "tile/share.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
encode(const act_t* __restrict__ x,  // (n,), aligned to 16 bytes
       u8* __restrict__ wire,        // wires of gridDim.y shares, one after the other
       int n,                        // numbers in x; the last codec block is filled up with zeros
       int padding) {                // number of such zeros if the wire ends with a byte that says it, else 0
  DYNAMIC_SHARED(smem);
  Carver carver(smem);
  u16* smem_scales = carver.take<u16>(BlockWire::SCRATCH);

  const Share share = share_of<BlockWire>(n, gridDim.y, blockIdx.y);
  if constexpr (PACKED) {
    encode_packed(x, wire + share.offset, share, n);
  } else {
    for (int tile = blockIdx.x; tile * BLOCKS_OF_TILE < share.granules; tile += gridDim.x) {
      const u32 first = share.first * BLOCK + (tile * THREADS + threadIdx.x) * 8;
      float v[8];
      load_eight(v, x, first, n);
      BlockWire::put(wire + share.offset, share.granules, tile, v, smem_scales);
    }
  }
  if (padding && blockIdx.x == 0 && threadIdx.x == 0) wire[BlockWire::bytes(share.granules)] = u8(padding);
}
