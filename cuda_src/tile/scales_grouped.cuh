// Scales where groups have one size, a multiple of SLAB (GROUP_SIZE), or where there is one group (0): global -> shared
// -> registers, once for a warp's slab.
#pragma once
#include "../ptx/cp_async.cuh"
#include "dequant_fragment.cuh"
#include "gemm_problem.cuh"

// rows of a unit that surely share their scales
constexpr int SCALE_ROWS = GROUP_SIZE % BLOCK_K == 0 ? BLOCK_K : SLAB;
constexpr int SCALE_LINES = BLOCK_K / SCALE_ROWS;
constexpr int S_STAGE = SCALE_LINES * BLOCK_N / 8;  // of 16 bytes: eight scales
constexpr int Z_STAGE = ZERO < 0 ? S_STAGE / 2 : 0;
static_assert(S_STAGE <= THREADS, "a thread copies one chunk of scales");

// Start copying 16 bytes, chunk `at` of a stage, of an array (G, N) whose elements have `SIZE` bytes.
template <int SIZE>
DEVICE void load_line(uint4* smem, const void* source, const Problem& p, int at, int n, int k) {
  constexpr int EACH = 16 / SIZE, ROW = BLOCK_N / EACH;  // elements in a chunk, chunks in a line
  const int row = min(k + at / ROW * SCALE_ROWS, p.K - 1), column = n + at % ROW * EACH;
  const int group = GROUP_SIZE ? row / max(GROUP_SIZE, 1) : 0;
  const bool valid = column < p.strips * STRIP;
  const size_t offset = ((size_t)group * p.strips * STRIP + column) * SIZE;
  cp_async_16(shared_address(smem + at), static_cast<const char*>(source) + (valid ? offset : 0), valid);
}

// Start copying those of a unit. The last threads do it, since the first ones copy x.
DEVICE void load_scales(uint4* smem_s, uint4* smem_z, const Problem& p, int n, int k) {
  const int at = THREADS - 1 - threadIdx.x;
  if (at < S_STAGE) load_line<2>(smem_s, p.scales, p, at, n, k);
  if constexpr (Z_STAGE > 0) {
    if (at < Z_STAGE) load_line<1>(smem_z, p.zeros, p, at, n, k);
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
