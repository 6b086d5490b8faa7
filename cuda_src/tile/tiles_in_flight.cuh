// Several tiles of a block at a time: a thread loads its part of all of them before it uses the
// first. With one load of 16 bytes a thread in flight, a grid moves less than a link or the memory could.
#pragma once
#include "either_wire.cuh"

constexpr int IN_FLIGHT = Team<Wire>::TILES_AT_A_TIME;

// v[i] = the numbers of this thread from group number groups[i] of x on, zero from index n on. Whole groups are loaded
// first, those of the ragged end after them.
DEVICE void load_tiles(float (&v)[IN_FLIGHT][8], const act_t* x, const u32 (&groups)[IN_FLIGHT], u32 n) {
  constexpr int WORDS = 8 / NUMBERS_OF_WORD;
  uint4 words[IN_FLIGHT][WORDS];
#pragma unroll
  for (int i = 0; i < IN_FLIGHT; i++)
#pragma unroll
    for (int w = 0; w < WORDS; w++)
      if (groups[i] * 8 + 8 <= n) words[i][w] = reinterpret_cast<const uint4*>(x + groups[i] * 8)[w];
#pragma unroll
  for (int i = 0; i < IN_FLIGHT; i++) {
    if (groups[i] * 8 + 8 <= n) {
#pragma unroll
      for (int j = 0; j < 8; j++) v[i][j] = to_float(reinterpret_cast<const act_t*>(words[i])[j]);
    } else {
      load_eight(v[i], x, groups[i] * 8, n);
    }
  }
}

// The same as pairs, of sixteen numbers.
DEVICE void load_tiles(u32 (&pairs)[IN_FLIGHT][8], const act_t* x, const u32 (&groups)[IN_FLIGHT], u32 n) {
#pragma unroll
  for (int i = 0; i < IN_FLIGHT; i++)
    if (groups[i] * 8 + 16 <= n) load_whole_pairs(pairs[i], x, groups[i] * 8);
#pragma unroll
  for (int i = 0; i < IN_FLIGHT; i++)
    if (groups[i] * 8 + 16 > n) load_pairs(pairs[i], x, groups[i] * 8, n);
}

// raw[i][w] = this thread's groups of tile number tile + i * NEXT of the w-th wire. In place of groups beyond the wire's
// granules the first of this tile is read, so that no branch stands between the loads; like all others it was written by
// blocks of this number. The wires are aligned, as those in slabs are.
template <class W, int COUNT, int WIRES>
DEVICE void load_groups(typename W::Raw (&raw)[COUNT][WIRES], const u8* const (&wires)[WIRES], int granules, int tile) {
  const u32 last = granules * GROUPS_OF_GRANULE - 1;
#pragma unroll
  for (int i = 0; i < COUNT; i++)
#pragma unroll
    for (int w = 0; w < WIRES; w++) {
      const u32 at = Team<W>::group_to_decode(tile + i * Team<W>::NEXT);
      raw[i][w] = W::template load<true>(wires[w], granules, at <= last ? at : tile * THREADS);
    }
}

// v, the numbers of this thread's groups from `group` on as decoded, to their places from number `first` of y on.
DEVICE void store_groups(act_t* y, u32 first, u32 group, int n, const float* v) {
#pragma unroll
  for (int i = 0; i < Wire::TEAMS; i++) store_eight(y, first + (group + i * Team<Wire>::APART) * 8, n, v + 8 * i);
}
