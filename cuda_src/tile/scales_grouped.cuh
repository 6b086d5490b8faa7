// Scales where groups have one size, a multiple of 32 (GROUP_SIZE), or where there is one group (0): global
// -> shared
// -> registers, once for a warp's slab.
#pragma once
#include "../ptx/cp_async.cuh"
#include "dequant_fragment.cuh"
#include "gemm_problem.cuh"

// rows of a unit that surely share their scales
constexpr int SCALE_ROWS = GROUP_SIZE % BLOCK_K == 0 ? BLOCK_K : GROUP_SIZE % 64 == 0 ? 64 : SLAB;
constexpr int SCALE_LINES = BLOCK_K / SCALE_ROWS;
constexpr int S_STAGE = SCALE_LINES * BLOCK_N / 8;  // of 16 bytes: eight scales
constexpr int Z_STAGE = ZERO < 0 ? SCALE_LINES * BLOCK_N / 16 : 0;

DEVICE int group_of(const Problem& p, int k) { return GROUP_SIZE ? min(k, p.K - 1) / max(GROUP_SIZE, 1) : 0; }

// Start copying. The last threads do it, since the first ones copy x.
DEVICE void load_scales(uint4* smem_s, uint4* smem_z, const Problem& p, int n, int k) {
#pragma unroll 1
  for (int at = THREADS - 1 - threadIdx.x; at < S_STAGE; at += THREADS) {
    const int line = at / (BLOCK_N / 8), i = at % (BLOCK_N / 8);
    const int group = group_of(p, k + line * SCALE_ROWS);
    const bool valid = n / STRIP + i / 8 < p.strips;
    cp_async_16(shared_address(smem_s + at),
                p.scales + (valid ? (size_t)group * p.strips * STRIP + n + 8 * i : 0), valid);
  }
#pragma unroll 1
  for (int at = THREADS - 1 - threadIdx.x; at < Z_STAGE; at += THREADS) {
    const int line = at / (BLOCK_N / 16), i = at % (BLOCK_N / 16);
    const int group = group_of(p, k + line * SCALE_ROWS);
    const bool valid = n / STRIP + i / 4 < p.strips;
    cp_async_16(shared_address(smem_z + at),
                p.zeros + (valid ? (size_t)group * p.strips * STRIP + n + 16 * i : 0), valid);
  }
}

// Scales and zero points of a lane's eight columns: g, g + 8, ... g + 56 of the warp's strip.
struct ColumnScales {
  Dequantizer<DTYPE>::Scale scale[8];
  u32 offset_[8];

  // From eight scales and eight zero points, both in this order.
  __device__ __forceinline__ void set(uint4 scales, uint2 zeros) {
    const u32 pairs[4] = {scales.x, scales.y, scales.z, scales.w};
#pragma unroll
    for (int i = 0; i < 8; i++)
      scale[i] = Dequantizer<DTYPE>::scale(prmt(pairs[i / 2], 0, i % 2 ? 0x3232 : 0x1010));
    if constexpr (ZERO < 0) {
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const u32 byte = (i < 4 ? zeros.x : zeros.y) >> (8 * (i % 4)) & 255;
        offset_[i] = Dequantizer<DTYPE>::offset(i, byte | byte << 16);
      }
    }
  }

  // Operand A for the 16 columns of word t.
  __device__ __forceinline__ void dequantize(u32 (&a)[4], u32 word, int t) const {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const u32 offset = ZERO < 0 ? offset_[2 * t + i % 2] : Dequantizer<DTYPE>::offset(i, ZERO * 0x10001);
      a[i] = Dequantizer<DTYPE>::weight(i, word, offset, scale[2 * t + i % 2]);
    }
  }
};

// Those of the slab that this warp takes of a unit.
DEVICE void slab_scales(ColumnScales& columns, const uint4* smem_s, const uint4* smem_z, const Place& at) {
  const int line = at.warp_k * SLAB / SCALE_ROWS;
  uint2 zeros = {0, 0};
  if (ZERO < 0) zeros = reinterpret_cast<const uint2*>(smem_z)[line * (BLOCK_N / 8) + at.warp_n * 8 + at.g];
  columns.set(smem_s[line * (BLOCK_N / 8) + at.warp_n * 8 + at.g], zeros);
}
