// The wire of MXFP4, which half2 encodes (tile/packed_e2m1.cuh), with the interface of tile/block_wire.cuh. A thread takes
// sixteen numbers, so that half of a block's threads have a tile.
#pragma once
#include "packed_e2m1.cuh"

struct PackedWire : BlockWire {
  static constexpr int TEAMS = 2;
  using Numbers = u32[8];  // pairs
  using Raw = RawGroups<TEAMS>;

  static __device__ __forceinline__ void put(u8* wire, int blocks, int tile, const Numbers& pairs, u16*) {
    put_sixteen<true>(wire, blocks, tile * (THREADS / TEAMS) + threadIdx.x % (THREADS / TEAMS), pairs);
  }

  template <bool ALIGNED>
  static __device__ __forceinline__ Raw load(const u8* wire, int blocks, u32 group) {
    return BlockWire::load<ALIGNED, TEAMS>(wire, blocks, group);
  }
};
