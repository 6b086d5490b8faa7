// The sum of all ranks' wires, in float32 and always from rank 0 to the last, so that all ranks compute the same bits.
#pragma once
#include "block_wire.cuh"

// Loads the terms of all ranks before it adds any, so that all loads are in flight together.
template <bool ALIGNED, int GROUPS>
DEVICE void sum_of_loaded(float* sum, const u8* const* wires, int blocks, u32 group) {
  BlockWire::RawGroups<GROUPS> raw[RANKS];
#pragma unroll
  for (int rank = 0; rank < RANKS; rank++) raw[rank] = BlockWire::load<ALIGNED, GROUPS>(wires[rank], blocks, group);
  BlockWire::add_up(sum, raw);
}

// sum = the numbers of a group of a share, and of others of its codec block at equal distances behind it. The wires of
// the ranks lie `wire_bytes` apart.
template <int GROUPS = 1>
DEVICE void sum_of_ranks(float* sum, const u8* first_wire, size_t wire_bytes, int blocks, u32 group) {
  const u8* wires[RANKS];
  bool aligned = true;
#pragma unroll
  for (int rank = 0; rank < RANKS; rank++) {
    wires[rank] = first_wire + rank * wire_bytes;
    aligned = aligned && BlockWire::is_aligned(wires[rank]);
  }
  if (aligned) sum_of_loaded<true, GROUPS>(sum, wires, blocks, group);
  else sum_of_loaded<false, GROUPS>(sum, wires, blocks, group);
}
