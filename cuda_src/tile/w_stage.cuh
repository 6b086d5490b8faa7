// Packed codes, global -> shared -> registers. Every lane copies the very 16-byte words that it will multiply,
// CODE_WORDS for each 16 rows of its slab, so that it waits for its own copies only. Codes are read once: their policy
// evicts them from L2 first.
#pragma once
#include "../ptx/cp_async.cuh"
#include "gemm_problem.cuh"

// 16-byte words of a lane in a stage: codes and, where groups have one size, scales and zero points.
constexpr int LANE_CODES = STEPS * CODE_WORDS;
constexpr int LANE_WORDS = LANE_CODES + (SCALE_LOOKUP != UNIFORM ? 0 : ZERO < 0 ? 2 : 1);
constexpr int W_STAGE = LANE_WORDS * THREADS;

// A lane's codes of 16 rows: CODE_WORDS for each 16 of the 64 columns (codes_fragments.cuh).
struct LaneCodes {
  u32 word[4 * CODE_WORDS];
};

struct WRing {
  const uint4* source;  // this lane's first word in the unit to copy next
  int units;            // number of this block's units that have this warp's slab
  const uint4* own;     // this lane's words in stage 0
  u32 target;           // shared address of `own`, for cp.async
  u64 policy;

  __device__ __forceinline__ WRing(const uint4* smem_w, const Problem& p, const Place& at)
      : units(p.units_with(at.warp_k * SLAB)), own(smem_w + threadIdx.x), target(shared_address(own)),
        policy(evict_first_policy()) {
    const size_t tile = (size_t)at.strip(p) * p.tiles_k16 + p.k / 16 + STEPS * at.warp_k;
    source = p.words + tile * CODE_WORDS * 32 + at.lane;
  }

  // Starts copying the next unit's codes; zeros where that unit lacks this warp's slab.
  __device__ __forceinline__ void load(int stage, int unit) const {
#pragma unroll
    for (int i = 0; i < LANE_CODES; i++) cp_async_16_hint(target_of(stage, i), source + i * 32, policy, unit < units);
  }
  __device__ __forceinline__ void go_down() { source += BLOCK_K / 16 * CODE_WORDS * 32; }

  __device__ __forceinline__ LaneCodes codes(int stage, int step) const {
    LaneCodes codes;
#pragma unroll
    for (int i = 0; i < CODE_WORDS; i++) {
      const uint4 four = word(stage, step * CODE_WORDS + i);
      codes.word[4 * i] = four.x, codes.word[4 * i + 1] = four.y;
      codes.word[4 * i + 2] = four.z, codes.word[4 * i + 3] = four.w;
    }
    return codes;
  }

  // 16-byte word i of this lane: codes of one step after the other, then scales and zero points.
  __device__ __forceinline__ uint4 word(int stage, int i) const { return own[stage * W_STAGE + i * THREADS]; }
  __device__ __forceinline__ u32 target_of(int stage, int i) const {
    return target + 16 * (stage * W_STAGE + i * THREADS);
  }
};
