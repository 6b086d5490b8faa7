// Multiplies a warp's part of one unit: 64 columns by SLAB rows of the weight by BLOCK_M tokens, both in shared memory.
#pragma once
#include "../ptx/mma.cuh"
#include "scales_by_row.cuh"
#include "scales_grouped.cuh"
#include "w_stage.cuh"
#include "x_stage.cuh"

// One mma step of 16 rows: sums += weight^T @ x^T; `scales` dequantizes codes into operands.
template <class Scales>
DEVICE void mma_step(Sums& sums, const LaneCodes& codes, const u32 (&frag_x)[TOKEN_TILES][2], const Scales& scales) {
#pragma unroll
  for (int t = 0; t < 4; t++) {
    u32 frag_w[4];
    scales.dequantize(frag_w, codes.word + t * CODE_WORDS, t);
#pragma unroll
    for (int j = 0; j < TOKEN_TILES; j++) mma_m16n8k16(sums[t][j], frag_w, frag_x[j], act_t());
  }
}

// All mma steps of a slab; `scales_of(step)` returns the scales of a step's 16 rows.
template <class ScalesOf>
DEVICE void mma_steps(Sums& sums, const XRing& x, const WRing& w, int stage, const ScalesOf& scales_of) {
#pragma unroll
  for (int step = 0; step < STEPS; step += 2) {
    u32 frag_x[2][TOKEN_TILES][2];
    x.fragments(frag_x, stage, step);
#pragma unroll
    for (int i = 0; i < 2; i++) mma_step(sums, w.codes(stage, step + i), frag_x[i], scales_of(step + i));
  }
}

// sums += the product of this warp's slab of a unit, which lies in `stage` of the rings.
DEVICE void mma_slab(Sums& sums, const XRing& x, const WRing& w, const Problem& p, const Place& at,
                     int stage, int unit) {
  const int first_row = p.k + unit * BLOCK_K + at.warp_k * SLAB;
  ColumnScales columns;
  if constexpr (SCALE_LOOKUP == UNIFORM) {
    columns = column_scales(w, stage, at);
  } else if (slab_has_one_group(p, first_row)) {
    group_scales(columns, p, first_row, at);
  } else {
    RowScales rows[STEPS];  // fetched for all steps at once, so that their latencies overlap
#pragma unroll
    for (int step = 0; step < STEPS; step++) rows[step].fetch(p, first_row + 16 * step, at);
    mma_steps(sums, x, w, stage, [&](int step) -> const RowScales& { return rows[step]; });
    return;
  }
  mma_steps(sums, x, w, stage, [&](int) -> const ColumnScales& { return columns; });
}
