// Which part of a sum belongs to which rank, and where the wire of that part lies: shares of whole granules, the
// first ones a granule larger, their wires one behind the other. As Codec.shares in cutpq/codecs/codec.py.
#pragma once
#include "../target.cuh"

struct Share {
  int first, granules;  // in granules
  size_t offset;        // of its wire, in bytes
};

// Share `number` of `shares` of n numbers.
template <class Wire>
DEVICE Share share_of(u32 n, u32 shares, u32 number) {
  const u32 granules = (n + Wire::GRANULE - 1) / Wire::GRANULE;
  const u32 each = granules / shares, more = granules % shares, larger = min(number, more);
  const size_t difference = Wire::bytes(each + 1) - Wire::bytes(each);
  return {int(number * each + larger), int(each + (number < more)), number * Wire::bytes(each) + larger * difference};
}

// The share that a granule belongs to.
template <class Wire>
DEVICE int share_with(int n, int shares, int granule) {
  const int granules = n / Wire::GRANULE + (n % Wire::GRANULE != 0);
  const int each = granules / shares, more = granules % shares;
  return granule < more * (each + 1) ? granule / (each + 1) : more + (granule - more * (each + 1)) / each;
}
