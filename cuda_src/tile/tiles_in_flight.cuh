// Several tiles of a block at a time: a thread loads its part of all of them before it uses the
// first. With one load of 16 bytes a thread in flight, a grid moves less than a link or the memory could.
#pragma once
#include "either_wire.cuh"

constexpr int STRIDE = GRID * THREADS;  // groups from a thread's part of one tile to that of the next

constexpr int TILES = 4;  // tiles of an array, or of one rank's wire
// of the wires of all ranks: up to 256 bytes a thread
constexpr int SUM_BYTES = RANKS * sizeof(Wire::Raw);
constexpr int SUM_TILES = SUM_BYTES * TILES <= 256 ? TILES : SUM_BYTES * 2 <= 256 ? 2 : 1;

// v[i] = the eight numbers of group number groups[i] of x, zero from index n on.
DEVICE void load_tiles(float (&v)[TILES][8], const act_t* x, const u32 (&groups)[TILES], u32 n) {
  constexpr int WORDS = 8 / NUMBERS_OF_WORD;
  u32 last = groups[0];
#pragma unroll
  for (int i = 1; i < TILES; i++) last = max(last, groups[i]);
  if (last * 8 + 8 <= n) {
    uint4 words[TILES][WORDS];
#pragma unroll
    for (int i = 0; i < TILES; i++)
#pragma unroll
      for (int w = 0; w < WORDS; w++) words[i][w] = reinterpret_cast<const uint4*>(x + groups[i] * 8)[w];
#pragma unroll
    for (int i = 0; i < TILES; i++)
#pragma unroll
      for (int j = 0; j < 8; j++) v[i][j] = to_float(reinterpret_cast<const act_t*>(words[i])[j]);
  } else {
#pragma unroll
    for (int i = 0; i < TILES; i++) load_eight(v[i], x, groups[i] * 8, n);
  }
}

// raw[i][w] = group + i * STRIDE of the w-th wire. In place of a group beyond the wire's granules the first of this
// tile is read, so that no branch stands between the loads; like all others it was written by blocks of this number.
// The wires are aligned, as those in slabs are.
template <int COUNT, int WIRES>
DEVICE void load_groups(Wire::Raw (&raw)[COUNT][WIRES], const u8* const (&wires)[WIRES], int granules, u32 group) {
  const u32 last = granules * GROUPS_OF_GRANULE - 1;
#pragma unroll
  for (int i = 0; i < COUNT; i++)
#pragma unroll
    for (int w = 0; w < WIRES; w++) {
      const u32 at = group + i * STRIDE;
      raw[i][w] = Wire::template load<true>(wires[w], granules, at <= last ? at : group - threadIdx.x);
    }
}
