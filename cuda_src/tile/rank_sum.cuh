// The sum of all ranks' wires, in float32 and always from rank 0 to the last, so that all ranks compute the same bits.
#pragma once
#include "../target.cuh"

// Loads the terms of all ranks before it adds any, so that all loads are in flight together.
template <class Wire, bool ALIGNED>
DEVICE void sum_of_loaded(float* sum, const u8* const* wires, int granules, u32 group) {
  typename Wire::Raw raw[RANKS];
#pragma unroll
  for (int rank = 0; rank < RANKS; rank++) raw[rank] = Wire::template load<ALIGNED>(wires[rank], granules, group);
  Wire::add_up(sum, raw);
}

// sum = the eight numbers of a group of a share; wires[r] is rank r's wire of the share.
template <class Wire>
DEVICE void sum_of_ranks(float* sum, const u8* const* wires, int granules, u32 group) {
  bool aligned = true;
#pragma unroll
  for (int rank = 0; rank < RANKS; rank++) aligned = aligned && Wire::is_aligned(wires[rank]);
  if (aligned) sum_of_loaded<Wire, true>(sum, wires, granules, group);
  else sum_of_loaded<Wire, false>(sum, wires, granules, group);
}

// The same for wires that lie `wire_bytes` apart.
template <class Wire>
DEVICE void sum_of_ranks(float* sum, const u8* first_wire, size_t wire_bytes, int granules, u32 group) {
  const u8* wires[RANKS];
#pragma unroll
  for (int rank = 0; rank < RANKS; rank++) wires[rank] = first_wire + rank * wire_bytes;
  sum_of_ranks<Wire>(sum, wires, granules, group);
}
