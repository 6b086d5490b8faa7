// A warp's part of one unit: 64 columns by SLAB rows of the weight times BLOCK_M tokens, all from shared memory.
#pragma once
#include "../ptx/mma.cuh"
#include "scales_by_row.cuh"
#include "scales_grouped.cuh"
#include "w_stage.cuh"
#include "x_stage.cuh"

// One stage of the ring.
struct Stage {
  uint4 *x, *w, *s, *z;
};

// 16 rows: sums += weight^T @ x^T, where `scales` turns words into operands.
template <class Scales>
DEVICE void mma_step(Sums& sums, const Stage& stage, const Scales& scales, const Place& at, int step) {
  u32 frag_x[TOKEN_TILES][2];
  x_fragments(frag_x, stage.x, at.warp_k * (SLAB / 8) + 2 * step, at.lane);
  const uint4 w = w_fragment(stage.w, step);
  const u32 words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
  for (int t = 0; t < 4; t++) {
    u32 frag_w[4];
    scales.dequantize(frag_w, words[t], t);
#pragma unroll
    for (int j = 0; j < TOKEN_TILES; j++) mma_m16n8k16(sums[t][j], frag_w, frag_x[j], act_t());
  }
}

// The slab that this warp takes of the unit at column n, row k.
DEVICE void mma_slab(Sums& sums, const Stage& stage, const Problem& p, const Place& at, int n, int k) {
  const int first_row = k + at.warp_k * SLAB;
  ColumnScales columns;
  if constexpr (ORDER == GROUPED) {
    slab_scales(columns, stage.s, stage.z, at);
  } else if (slab_has_one_group(p, first_row)) {
    group_scales(columns, p, n, first_row, at);
  } else {
    RowScales rows[STEPS];  // all fetched before the first is used: one wait
#pragma unroll
    for (int step = 0; step < STEPS; step++) rows[step].fetch(p, n, first_row + 16 * step, at);
#pragma unroll
    for (int step = 0; step < STEPS; step++) mma_step(sums, stage, rows[step], at, step);
    return;
  }
#pragma unroll
  for (int step = 0; step < STEPS; step++) mma_step(sums, stage, columns, at, step);
}
