// Adds the MXFP4 wires of all ranks and encodes the sum, sixteen numbers a thread, in half2 from end to end. A warp with
// a block whose scales are too far apart for that (tile/packed_sum.cuh) adds in float32.
#pragma once
#include "packed_e2m1.cuh"
#include "rank_sum.cuh"

constexpr int SPREAD_OF_RANKS = PackedSum<RANKS>::SPREAD;

// The sixteen numbers a lane of this warp by float32, a group of eight after the other: of 64 groups from `group` on.
DEVICE void add_in_float(const u8* wires, u8* total, size_t wire_bytes, int blocks, u32 group) {
#pragma unroll 1
  for (int round = 0; round < 2; round++, group += 32) {
    const u32 mine = group + threadIdx.x % 32, block = mine / GROUPS_OF_BLOCK;
    const bool inside = block < u32(blocks);
    float sum[8] = {};
    if (inside) sum_of_ranks(sum, wires, wire_bytes, blocks, mine);
    const u32 scale = BlockWire::put_codes(total, blocks, mine, sum);
    if (inside && mine % GROUPS_OF_BLOCK == 0) total[BlockWire::elements_bytes(blocks) + block] = u8(scale);
  }
}

// total = the wire of the sum of RANKS wires that lie `wire_bytes` apart. All threads of the block call it together.
DEVICE void add_packed(const u8* wires, u8* total, size_t wire_bytes, int blocks) {
  const size_t scales_at = BlockWire::elements_bytes(blocks);
  const bool aligned = is_aligned(wires, 8) && is_aligned(total, 8) && wire_bytes % 8 == 0;
  for (int tile = blockIdx.x; tile * (THREADS / SIXTEENS_OF_BLOCK) < blocks; tile += gridDim.x) {
    const u32 sixteen = tile * THREADS + threadIdx.x, block = sixteen / SIXTEENS_OF_BLOCK;
    const bool inside = block < u32(blocks);
    uint2 codes[RANKS];
    u32 scales[RANKS], lowest = SCALE_LARGEST, highest = 0;
    if (inside && aligned) {
#pragma unroll
      for (int rank = 0; rank < RANKS; rank++) {
        const u8* wire = wires + rank * wire_bytes;
        codes[rank] = reinterpret_cast<const uint2*>(wire)[sixteen];
        scales[rank] = wire[scales_at + block];
        lowest = min(lowest, scales[rank]);
        highest = max(highest, scales[rank]);
      }
    }
    const bool exact = int(highest) <= ORDINARY_SCALE && (!inside || PackedSum<RANKS>::is_exact(lowest, highest));
    if (!__all_sync(FULL_WARP, aligned && exact)) {
      add_in_float(wires, total, wire_bytes, blocks, (sixteen - threadIdx.x % 32) * 2);
      continue;
    }
    const PackedSum<RANKS> sum(lowest);
    half2 pairs[8] = {};  // of each eight numbers the even ones, then the odd ones
    if (inside) {
#pragma unroll
      for (int rank = 0; rank < RANKS; rank++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          u32 words[2];
          unpack(words, i / 2 ? codes[rank].y : codes[rank].x);
          sum.add(pairs + 2 * i, words[i % 2], scales[rank], rank == 0);
        }
    }
    u32 bits[8];
#pragma unroll
    for (int i = 0; i < 8; i++) bits[i] = as_u32(pairs[i]);
    const float largest = __uint_as_float(largest_magnitude(bits));
    const u32 scale = scale_code(__float_as_uint(__fmul_rn(largest, sum.unit)));
    if (!inside) continue;
    // From sums to elements: the unit over the new scale, a power of two. Blocks of zeros may ask for any.
    const int k = min(max(int(lowest) + SPREAD_OF_RANKS - ELEMENT_BIAS - int(scale), -14), 15);
    const half2 factor = as_pair<half2>(u32(k + 15) * 0x04000400u);
#pragma unroll
    for (int i = 0; i < 8; i++) pairs[i] = __hmul2(pairs[i], factor);
    reinterpret_cast<uint2*>(total)[sixteen] =
        make_uint2(codes_of_parted(pairs, pairs + 2), codes_of_parted(pairs + 4, pairs + 6));
    if (sixteen % SIXTEENS_OF_BLOCK == 0) total[scales_at + block] = u8(scale);
  }
}
