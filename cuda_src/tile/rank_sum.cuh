// The sum of what the wires of all ranks say, in float32, from rank 0 to the last: the same bits everywhere.
#pragma once
#include "../target.cuh"

// All is loaded before anything is added, so that the ranks' loads are under way together.
template <class Wire, bool ALIGNED>
DEVICE void sum_of_loaded(float* sum, const u8* const* wires, int granules, u32 group) {
  typename Wire::Raw raw[RANKS];
#pragma unroll
  for (int rank = 0; rank < RANKS; rank++) raw[rank] = Wire::template load<ALIGNED>(wires[rank], granules, group);
  Wire::add_up(sum, raw);
}

// sum = the numbers of a group of a share; wires are those of the share, of each rank.
template <class Wire>
DEVICE void sum_of_ranks(float* sum, const u8* const* wires, int granules, u32 group) {
  bool aligned = true;
#pragma unroll
  for (int rank = 0; rank < RANKS; rank++) aligned = aligned && Wire::is_aligned(wires[rank]);
  if (aligned) sum_of_loaded<Wire, true>(sum, wires, granules, group);
  else sum_of_loaded<Wire, false>(sum, wires, granules, group);
}

// The same of wires that lie `wire_bytes` apart.
template <class Wire>
DEVICE void sum_of_ranks(float* sum, const u8* first_wire, size_t wire_bytes, int granules, u32 group) {
  const u8* wires[RANKS];
#pragma unroll
  for (int rank = 0; rank < RANKS; rank++) wires[rank] = first_wire + rank * wire_bytes;
  sum_of_ranks<Wire>(sum, wires, granules, group);
}
