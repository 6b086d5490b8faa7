// Scales of a weight in which every row may belong to another group: rows sorted by group with groups of any length
// (ASCENDING), or in the order of the checkpoint (SCATTERED). A lane holds four rows of an mma operand and fetches the
// scales of each from global memory; neighbouring rows of a sorted weight find them in L1. A sorted slab whose rows are
// all of one group, the usual case with long groups, takes the scales of columns as scales_grouped.cuh does.
#pragma once
#include "scales_grouped.cuh"

// Index of the first of a lane's eight scales.
DEVICE size_t first_scale(const Problem& p, int group, const Place& at) {
  return ((size_t)group * p.strips + at.strip(p)) * STRIP + at.g * 8;
}

// Scales and zero points of a lane's eight columns in rows c, c + 1, c + 8 and c + 9 of an mma operand.
struct RowScales {
  uint4 scale[4];
  uint2 zero[4];

  __device__ __forceinline__ void fetch(const Problem& p, int k, const Place& at) {
#pragma unroll
    for (int r = 0; r < 4; r++) {
      const int row = k + at.c + r % 2 + r / 2 * 8;
      const int group = row < p.tiles_k16 * 16 ? p.g_idx[row] : 0;
      const size_t first = first_scale(p, group, at);
      scale[r] = *reinterpret_cast<const uint4*>(p.scales + first);
      if (ZERO < 0) zero[r] = *reinterpret_cast<const uint2*>(p.zeros + first);
    }
  }

  __device__ __forceinline__ static u32 part(const uint4& v, int t) {
    return t == 0 ? v.x : t == 1 ? v.y : t == 2 ? v.z : v.w;
  }

  // a = operand A for the t-th 16 columns, of their codes. Pair i has rows i / 2 * 2 and the next one, both of one
  // column.
  __device__ __forceinline__ void dequantize(u32 (&a)[4], const u32* codes, int t) const {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int r = i / 2 * 2;
      const u32 pair = prmt(part(scale[r], t), part(scale[r + 1], t), i % 2 ? 0x7632 : 0x5410);
      u32 zeros = ZERO * 0x10001;
      if (ZERO < 0) {
        const int byte = 2 * t % 4 + i % 2;
        const u32 first = t < 2 ? zero[r].x : zero[r].y, second = t < 2 ? zero[r + 1].x : zero[r + 1].y;
        zeros = prmt(first, second, byte | (4 + byte) << 8) & 0x00ff00ff;
      }
      a[i] = Dequant::weight(i, codes, Dequant::offset(i, zeros), Dequant::scale(pair));
    }
  }
};

// Whether all rows of the slab at row k are of one group. In a sorted weight its first and last row tell.
DEVICE bool slab_has_one_group(const Problem& p, int k) {
  if (SCALE_LOOKUP != ASCENDING || k + SLAB > p.tiles_k16 * 16) return false;
  return p.g_idx[k] == p.g_idx[k + SLAB - 1];
}

// columns = the scales of the group of row k.
DEVICE void group_scales(ColumnScales& columns, const Problem& p, int k, const Place& at) {
  const size_t first = first_scale(p, p.g_idx[k], at);
  uint2 zeros = {0, 0};
  if (ZERO < 0) zeros = *reinterpret_cast<const uint2*>(p.zeros + first);
  columns.set(*reinterpret_cast<const uint4*>(p.scales + first), zeros);
}
