// Wire is the format in a slab: plain numbers where PLAIN, else the wire of a block codec, by way of half2 where PACKED.
//
// A tile is THREADS groups of eight numbers. The threads of a block form Wire::TEAMS teams, each of which has a tile of
// its own at a time: of a tile a thread takes as many groups.
#pragma once
#include "block_wire.cuh"
#include "packed_wire.cuh"
#include "plain_wire.cuh"

template <bool IS_PLAIN, bool IS_PACKED>
struct EitherWire {
  using type = BlockWire;
};
template <bool IS_PACKED>
struct EitherWire<true, IS_PACKED> {
  using type = PlainWire;
};
template <>
struct EitherWire<false, true> {
  using type = PackedWire;
};
using Wire = EitherWire<PLAIN, PACKED>::type;
using WireByEight = EitherWire<PLAIN, false>::type;  // the same bytes, of which a thread takes eight numbers at a time

constexpr int GROUPS_OF_GRANULE = Wire::GRANULE / 8;

// Number of tiles that hold so many granules.
DEVICE int tiles_of(int granules) { return (granules * GROUPS_OF_GRANULE + THREADS - 1) / THREADS; }

// The team that this thread is of, and its place there.
template <class W>
struct Team {
  static constexpr int SIZE = THREADS / W::TEAMS;
  static_assert(W::TEAMS == 1 || SIZE % 32 == 0, "a warp is of one team");
  static constexpr int NEXT = W::TEAMS * GRID;                  // from a team's tile to its next in an array
  static constexpr int TILES_AT_A_TIME = TILES / W::TEAMS;      // of an array, or of one rank's wire
  static constexpr int SUM_TILES_AT_A_TIME = SUM_TILES > W::TEAMS ? SUM_TILES / W::TEAMS : 1;  // of all ranks' wires

  static __device__ __forceinline__ int number() { return threadIdx.x / SIZE; }
  static __device__ __forceinline__ u32 place() { return threadIdx.x % SIZE; }

  // To encode, a thread takes neighbouring groups of a tile, from this one on.
  static __device__ __forceinline__ u32 group_to_encode(int tile) { return tile * THREADS + place() * W::TEAMS; }

  // To decode, it takes groups of one granule, from this one on, APART from each other: what neighbouring threads store
  // at once is then neighbouring groups.
  static constexpr u32 APART = GROUPS_OF_GRANULE / W::TEAMS;
  static __device__ __forceinline__ u32 group_to_decode(int tile) {
    return tile * THREADS + place() / APART * GROUPS_OF_GRANULE + place() % APART;
  }
};
