// Encodes float16 numbers to E2M1 elements with E8M0 scales (MXFP4), sixteen a thread and two at a time in half2: half
// the instructions of the way through float32 (tile/element_code.cuh), with the same bits.
//
// Multiplied by the inverse of their block's scale, numbers are below 8. What is then too small for float16 is far
// below 1/4, which rounds to zero, so that only the rounding to E2M1 shows.
#pragma once
#include "../ptx/bits.cuh"
#include "block_wire.cuh"
#include "eight.cuh"
#include "share.cuh"

constexpr int SIXTEENS_OF_BLOCK = BLOCK < 16 ? 1 : BLOCK / 16;

// Sixteen numbers from `first` on as pairs. x is aligned to 16 bytes, first a multiple of 16.
DEVICE void load_whole_pairs(u32 (&pairs)[8], const act_t* x, u32 first) {
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const uint4 word = reinterpret_cast<const uint4*>(x + first)[i];
    pairs[4 * i] = word.x, pairs[4 * i + 1] = word.y, pairs[4 * i + 2] = word.z, pairs[4 * i + 3] = word.w;
  }
}

// The same, zero from index n on.
DEVICE void load_pairs(u32 (&pairs)[8], const act_t* x, u32 first, u32 n) {
  if (first + 16 <= n) {
    load_whole_pairs(pairs, x, first);
  } else {
    const u16* bits = reinterpret_cast<const u16*>(x);
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const u32 at = first + 2 * i;
      pairs[i] = (at < n ? u32(bits[at]) : 0) | (at + 1 < n ? u32(bits[at + 1]) << 16 : 0);
    }
  }
}

// The float32 bits of the largest magnitude of a block, whose numbers SIXTEENS_OF_BLOCK neighbouring lanes have.
DEVICE u32 largest_magnitude(const u32 (&pairs)[8]) {
  half2 largest = __habs2(as_pair<half2>(pairs[0]));
#pragma unroll
  for (int i = 1; i < 8; i++) largest = __hmax2_nan(largest, __habs2(as_pair<half2>(pairs[i])));
  u32 bits = max(as_u32(largest) & 0xffff, as_u32(largest) >> 16);
#pragma unroll
  for (int distance = SIXTEENS_OF_BLOCK / 2; distance; distance /= 2)
    bits = max(bits, __shfl_xor_sync(FULL_WARP, bits, distance));
  return __float_as_uint(to_float(as_pair<half2>(bits).x));
}

// 2^k as a factor of two halves; it takes two, since float16 ends at 2^15 and k reaches 26.
struct PackedFactor {
  u32 first, second;
  __device__ __forceinline__ explicit PackedFactor(u32 scale) {
    const int k = min(max(SCALE_BIAS - int(scale), -28), 30);  // beyond: blocks of zeros, and those with NaN
    first = u32(k / 2 + 15) * 0x04000400u, second = u32(k - k / 2 + 15) * 0x04000400u;
  }
  __device__ __forceinline__ half2 times(u32 pair) const {
    return __hmul2(__hmul2(as_pair<half2>(pair), as_pair<half2>(first)), as_pair<half2>(second));
  }
};

// The codes of four scaled numbers, a byte each.
DEVICE u32 code_bytes(half2 first, half2 second) {
  const half2 steps = as_pair<half2>(0x60006000);  // 512: the last bit of 512 * binade is the step of E2M1
  const half2 pairs[2] = {first, second};
  u32 fields[2];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const u32 bits = as_u32(pairs[i]);
    const half2 magnitude = as_pair<half2>(bits & 0x7fff7fff);
    const half2 binade = __hmax2(as_pair<half2>(bits & 0x7c007c00), as_pair<half2>(0x3c003c00));  // at least 1
    const half2 raised = __hfma2(binade, steps, magnitude);
    const half2 rounded = __hfma2(__hneg2(binade), steps, raised);
    const half2 saturated = __hmin2(rounded, as_pair<half2>(0x46004600));                     // 6
    fields[i] = as_u32(__hmul2(saturated, as_pair<half2>(0x04000400)));  // times 2^-14: the fields of E2M1 itself
  }
  // Upper bytes: bits 1 to 3 are exponent and mantissa, bit 7 is the sign.
  const u32 field = prmt(fields[0], fields[1], 0x7531), sign = prmt(as_u32(first), as_u32(second), 0x7531);
  return (field >> 1 & 0x07070707) | (sign >> 4 & 0x08080808);
}

// Eight codes, the first in the lowest bits, of pairs of scaled numbers: those of even places, then those of odd ones.
DEVICE u32 codes_of_parted(const half2* even, const half2* odd) {
  if constexpr (HAS_FP4) {
    const float2 a = __half22float2(even[0]), b = __half22float2(even[1]);
    const float2 c = __half22float2(odd[0]), d = __half22float2(odd[1]);
    return e2m1_bytes({c.x, c.y, d.x, d.y}, {a.x, a.y, b.x, b.y});
  }
  return code_bytes(even[0], even[1]) | code_bytes(odd[0], odd[1]) << 4;
}

// The eight codes of four pairs of numbers times the factor, the first in the lowest bits.
DEVICE u32 packed_codes(const u32* pairs, const PackedFactor& factor) {
  if constexpr (HAS_FP4) {
    float low[4], high[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float2 both = __half22float2(factor.times(pairs[i]));
      low[i] = both.x, high[i] = both.y;
    }
    return e2m1_bytes(high, low);
  }
  u32 bytes[2];
#pragma unroll
  for (int i = 0; i < 2; i++) bytes[i] = code_bytes(factor.times(pairs[2 * i]), factor.times(pairs[2 * i + 1]));
  return prmt(bytes[0], bytes[1], 0x6420) | prmt(bytes[0], bytes[1], 0x7531) << 4;
}

// Encodes number `sixteen` of the sixteens of a share of `blocks` codec blocks, with its scale. All threads of a warp
// call it together, with neighbouring sixteens; those beyond the share are not written. ALIGNED promises
// is_aligned(wire, 8).
template <bool ALIGNED>
DEVICE void put_sixteen(u8* wire, int blocks, u32 sixteen, const u32 (&pairs)[8]) {
  const u32 block = sixteen / SIXTEENS_OF_BLOCK;
  const u32 scale = scale_code(largest_magnitude(pairs));
  const PackedFactor factor(scale);
  u32 codes[2] = {packed_codes(pairs, factor), packed_codes(pairs + 4, factor)};
  if (scale == u32(SCALE_NAN)) codes[0] = codes[1] = 0;
  if (block >= u32(blocks)) return;
  const size_t scales_at = BlockWire::elements_bytes(blocks);
  if (ALIGNED || is_aligned(wire, 8)) {
    *reinterpret_cast<u64*>(wire + size_t(sixteen) * 8) = u64(codes[1]) << 32 | codes[0];
  } else {
#pragma unroll
    for (int i = 0; i < 2; i++) store_codes(wire, 2 * sixteen + i, codes[i], true, scales_at);
  }
  if (sixteen % SIXTEENS_OF_BLOCK == 0) wire[scales_at + block] = u8(scale);
}

// Writes the wire of one share of x, of the n numbers that there are. All threads of a block call it together.
DEVICE void encode_packed(const act_t* x, u8* wire, const Share& share, u32 n) {
  for (int tile = blockIdx.x; tile * (THREADS / SIXTEENS_OF_BLOCK) < share.granules; tile += gridDim.x) {
    const u32 sixteen = tile * THREADS + threadIdx.x;
    u32 pairs[8];
    load_pairs(pairs, x, share.first * BLOCK + sixteen * 16, n);
    put_sixteen<false>(wire, share.granules, sixteen, pairs);
  }
}
