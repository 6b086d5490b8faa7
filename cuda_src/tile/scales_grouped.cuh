// Scales of a weight whose groups have GROUP_SIZE rows, a multiple of SLAB, or of a weight with one group (GROUP_SIZE
// 0). A slab then has one scale a column, which passes through the ring behind the slab's codes.
#pragma once
#include "dequant_fragment.cuh"
#include "w_stage.cuh"

// Scales and zero points of a lane's eight columns, g, g + 8, ... g + 56 of the warp's strip.
struct ColumnScales {
  Dequant::Scale scale[8];
  Dequant::Offset offset_[8];

  // Converts eight float16 scales and eight zero points of a byte, both in the order of the columns.
  __device__ __forceinline__ void set(uint4 scales, uint2 zeros) {
    const u32 pairs[4] = {scales.x, scales.y, scales.z, scales.w};
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const half2 two = as_pair<half2>(pairs[i / 2]);
      scale[i] = Dequant::scale(i % 2 ? two.y : two.x);
    }
    if constexpr (ZERO < 0) {
#pragma unroll
      for (int i = 0; i < 8; i++)  // prmt puts zero point i into both halves
        offset_[i] = Dequant::offset(i, prmt(i < 4 ? zeros.x : zeros.y, 0, 0x4040 + i % 4 * 0x0101));
    }
  }

  // a = operand A for the t-th 16 columns, of their codes.
  __device__ __forceinline__ void dequantize(u32 (&a)[4], const u32* codes, int t) const {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const auto offset = ZERO < 0 ? offset_[2 * t + i % 2] : Dequant::offset(i, ZERO * 0x10001);
      a[i] = Dequant::weight(i, codes, offset, scale[2 * t + i % 2]);
    }
  }
};

// Copies scales to the ring: each lane copies the 16 bytes with its columns' scales, and those with their zero points.
struct ScaleLoader {
  const half* scales;  // scales of this lane's columns in the group of the slab to copy next
  const u8* zeros;     // zero points of the same columns and group
  u32 columns;         // stride from one group to the next
  int row;             // first row of the slab to copy next

  __device__ __forceinline__ ScaleLoader(const Problem& p, const Place& at)
      : columns(p.strips * STRIP), row(p.k + at.warp_k * SLAB) {
    const size_t first = (size_t)group_of(row) * columns + at.strip(p) * STRIP + at.g * 8;
    scales = p.scales + first, zeros = p.zeros + first / 16 * 16;
  }

  // Starts copying the scales of the next unit; zeros where that unit lacks this warp's slab.
  __device__ __forceinline__ void load(const WRing& w, int stage, int unit) const {
    cp_async_16(w.target_of(stage, LANE_CODES), scales, unit < w.units);
    if constexpr (ZERO < 0) cp_async_16(w.target_of(stage, LANE_CODES + 1), zeros, unit < w.units);
  }
  __device__ __forceinline__ void go_down() {
    const bool whole_groups = GROUP_SIZE && BLOCK_K % max(GROUP_SIZE, 1) == 0;
    const u32 down = whole_groups ? group_of(BLOCK_K) : group_of(row + BLOCK_K) - group_of(row);
    scales += down * columns, zeros += down * columns;
    row += BLOCK_K;
  }
  __device__ __forceinline__ static u32 group_of(int row) { return GROUP_SIZE ? u32(row) / max(GROUP_SIZE, 1) : 0; }
};

// The scales of this lane's columns in a stage of the ring.
DEVICE ColumnScales column_scales(const WRing& w, int stage, const Place& at) {
  ColumnScales columns;
  uint4 zeros = {0, 0, 0, 0};
  if constexpr (ZERO < 0) zeros = w.word(stage, LANE_CODES + 1);
  columns.set(w.word(stage, LANE_CODES), at.g % 2 ? uint2{zeros.z, zeros.w} : uint2{zeros.x, zeros.y});
  return columns;
}
