// Packs codes of ELEMENT_BITS into one little-endian bit string. A thread's group of eight codes takes ELEMENT_BITS
// whole bytes, so that no two threads share a byte.
#pragma once
#include "../target.cuh"
#include "element_code.cuh"

constexpr int CODES_BYTES = ELEMENT_BITS;                 // bytes of a group
constexpr int CODES_UNIT = ELEMENT_BITS & -ELEMENT_BITS;  // largest power of two that divides them

// The eight codes of a group in registers are two words of four bytes, a code left-aligned in each byte: byte k of word
// w holds code number code_at(w, k). 4-bit codes split into even and odd numbers, because then packing only shifts a
// word.
constexpr __device__ int code_at(int w, int k) { return ELEMENT_BITS == 8 ? 4 * w + k : 2 * k + w; }

DEVICE u64 pack(const u32* words) {
  if (ELEMENT_BITS == 8) return u64(words[1]) << 32 | words[0];
  if (ELEMENT_BITS == 4) return words[0] >> 4 | words[1];
  u64 packed = 0;
#pragma unroll
  for (int w = 0; w < 2; w++)
#pragma unroll
    for (int k = 0; k < 4; k++)
      packed |= u64((words[w] >> (8 * k) & 0xff) >> (8 - ELEMENT_BITS)) << (ELEMENT_BITS * code_at(w, k));
  return packed;
}

// The inverse of pack; the bits of a byte below its code are undefined.
DEVICE void unpack(u32* words, u64 packed) {
  if (ELEMENT_BITS == 8) {
    words[0] = u32(packed);
    words[1] = u32(packed >> 32);
  } else if (ELEMENT_BITS == 4) {
    words[0] = u32(packed) << 4;
    words[1] = u32(packed);
  } else {
#pragma unroll
    for (int w = 0; w < 2; w++) {
      words[w] = 0;
#pragma unroll
      for (int k = 0; k < 4; k++)
        words[w] |= (u32(packed >> (ELEMENT_BITS * code_at(w, k))) << (8 - ELEMENT_BITS) & 0xff) << (8 * k);
    }
  }
}

template <int BYTES>
struct Unit;
template <>
struct Unit<1> { using type = u8; };
template <>
struct Unit<2> { using type = u16; };
template <>
struct Unit<4> { using type = u32; };
template <>
struct Unit<8> { using type = u64; };

DEVICE bool is_aligned(const u8* p, int bytes) { return reinterpret_cast<size_t>(p) % bytes == 0; }

template <int BYTES>
DEVICE u64 load_units(const u8* p) {
  using T = typename Unit<BYTES>::type;
  u64 bits = 0;
#pragma unroll
  for (int i = 0; i < CODES_BYTES / BYTES; i++) bits |= u64(reinterpret_cast<const T*>(p)[i]) << (8 * BYTES * i);
  return bits;
}

template <int BYTES>
DEVICE void store_units(u8* p, u64 bits) {
  using T = typename Unit<BYTES>::type;
#pragma unroll
  for (int i = 0; i < CODES_BYTES / BYTES; i++) reinterpret_cast<T*>(p)[i] = T(bits >> (8 * BYTES * i));
}

// Loads a group of codes. ALIGNED promises that the wire begins at a multiple of CODES_UNIT.
template <bool ALIGNED>
DEVICE u64 load_codes(const u8* p) {
  return ALIGNED ? load_units<CODES_UNIT>(p) : load_units<1>(p);
}

// Stores groups whose size is no power of two as 32-bit words of the whole warp; a word takes bytes from up to two
// lanes.
DEVICE void store_as_warp(u8* elements, u32 group, u64 packed, size_t end) {
  const int lane = threadIdx.x % 32;
  const size_t start = size_t(group - lane) * CODES_BYTES;
#pragma unroll
  for (int round = 0; round < (8 * CODES_BYTES + 31) / 32; round++) {
    const int at = 4 * (32 * round + lane);  // offset of this word in the warp's 32 * CODES_BYTES bytes
    const int first = at / CODES_BYTES, last = (at + 3) / CODES_BYTES;
    const u64 low = __shfl_sync(FULL_WARP, packed, first & 31), high = __shfl_sync(FULL_WARP, packed, last & 31);
    u32 word = u32(low >> (8 * (at - first * CODES_BYTES)));
    if (last != first) word |= u32(high << (8 * (last * CODES_BYTES - at)));
    if (first >= 32) continue;
    if (start + at + 4 <= end) {
      *reinterpret_cast<u32*>(elements + start + at) = word;
    } else {
      for (int i = 0; i < 4; i++)
        if (start + at + i < end) elements[start + at + i] = u8(word >> (8 * i));
    }
  }
}

// Stores a group of codes at its place in `elements`, an array of `end` bytes. All lanes of a warp call it together
// with neighbouring groups, because they exchange bytes; lanes that are not `inside` write nothing.
DEVICE void store_codes(u8* elements, u32 group, u64 packed, bool inside, size_t end) {
  constexpr bool whole = CODES_UNIT == CODES_BYTES;
  if (!whole && is_aligned(elements, 4)) return store_as_warp(elements, group, packed, end);
  u8* p = elements + size_t(group) * CODES_BYTES;
  if (!inside) return;
  if (whole && is_aligned(elements, CODES_UNIT)) store_units<CODES_UNIT>(p, packed);
  else store_units<1>(p, packed);
}
