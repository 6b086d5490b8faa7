// Cuts n numbers into one share a rank, of whole granules, the first ones a granule larger than the others. The wires
// of all shares follow each other. Layout.shares in cutpq/codecs/layout.py computes the same.
#pragma once
#include "../target.cuh"

struct Share {
  int first, granules;  // first granule and number of granules
  size_t offset;        // bytes before the share's wire
};

// Share `number` of `shares` of n numbers.
template <class Wire>
DEVICE Share share_of(u32 n, u32 shares, u32 number) {
  const u32 granules = (n + Wire::GRANULE - 1) / Wire::GRANULE;
  const u32 each = granules / shares, more = granules % shares, larger = min(number, more);
  const size_t difference = Wire::bytes(each + 1) - Wire::bytes(each);
  return {int(number * each + larger), int(each + (number < more)), number * Wire::bytes(each) + larger * difference};
}

// Number of the share that a granule belongs to.
template <class Wire>
DEVICE int share_with(int n, int shares, int granule) {
  const int granules = n / Wire::GRANULE + (n % Wire::GRANULE != 0);
  const int each = granules / shares, more = granules % shares;
  return granule < more * (each + 1) ? granule / (each + 1) : more + (granule - more * (each + 1)) / each;
}
