// Wire is the format in a slab: plain numbers where PLAIN, else the wire of a block codec.
#pragma once
#include "block_wire.cuh"
#include "plain_wire.cuh"

template <bool IS_PLAIN>
struct EitherWire {
  using type = BlockWire;
};
template <>
struct EitherWire<true> {
  using type = PlainWire;
};
using Wire = EitherWire<PLAIN>::type;

constexpr int GROUPS_OF_GRANULE = Wire::GRANULE / 8;

// Number of tiles that hold so many granules.
DEVICE int tiles_of(int granules) { return (granules * GROUPS_OF_GRANULE + THREADS - 1) / THREADS; }
