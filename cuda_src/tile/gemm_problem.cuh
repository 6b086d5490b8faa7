// The problem that a launch of gemm_w4a16 solves, and the part of it that a block computes.
//
// The weight is cut into units, tiles of BLOCK_N columns by BLOCK_K rows. A block takes BLOCK_M tokens (blockIdx.x) and
// one column of units (blockIdx.z). With gridDim.y > 1 (split-K) it takes a run of that column, and split_k.cuh adds
// the partial sums. Runs begin at the same rows in every column, so that the bits of a result do not depend on its
// column. blockIdx.x varies fastest: blocks that read the same codes for other tokens run at the same time and find
// them in L2.
#pragma once
#include "number.cuh"

constexpr int STRIP = 64;         // columns of a warp; SLAB is the rows of a warp in a unit
constexpr int STEPS = SLAB / 16;  // mma steps along k in a slab
constexpr int CODE_WORDS = BITS / 4;  // 16-byte words of a lane's codes in a step; u32 words of them in 16 columns
constexpr int WARPS = WARPS_N * WARPS_K;
constexpr int BLOCK_N = WARPS_N * STRIP;
constexpr int BLOCK_K = WARPS_K * SLAB;
constexpr int THREADS = 32 * WARPS;
constexpr int TOKEN_TILES = BLOCK_M / 8;  // tiles of the eight tokens that one mma takes

// How a kernel finds the scales of row k, as in cutpq/weights/pack.py.
enum ScaleLookup { UNIFORM, ASCENDING, SCATTERED };

using act_t = Number<DTYPE>::One;
using act2_t = Number<DTYPE>::Pair;

struct Problem {
  const act_t* x;
  const uint4* words;
  const half* scales;
  const u8* zeros;
  const int* g_idx;
  int M, N, K;
  int strips;     // strips of 64 columns in `words`
  int tiles_k16;  // tiles of 16 rows in `words`
  int m, n, k;    // first token, column and row of this block
  int units;      // units of this block, one below the other

  __device__ __forceinline__ Problem(const act_t* x, const uint4* words, const half* scales, const u8* zeros,
                                     const int* g_idx, int M, int N, int K, int strips, int tiles_k16)
      : x(x), words(words), scales(scales), zeros(zeros), g_idx(g_idx), M(M), N(N), K(K), strips(strips),
        tiles_k16(tiles_k16) {
    const u32 units_k = (K + BLOCK_K - 1) / BLOCK_K, first = units_k * blockIdx.y / gridDim.y;
    m = blockIdx.x * BLOCK_M, n = blockIdx.z * BLOCK_N, k = first * BLOCK_K;
    units = units_k * (blockIdx.y + 1) / gridDim.y - first;
  }
  // Number of units, from this block's first on, in which row `row` of the unit is a row of the weight.
  __device__ __forceinline__ int units_with(int row) const { return (K - k - row + BLOCK_K - 1) / BLOCK_K; }
};

// The position of a thread in its block; warps are numbered along the columns first.
struct Place {
  int lane, warp_n, warp_k, g, c;  // g = lane / 4, c = 2 (lane % 4), as in ptx/mma.cuh

  __device__ __forceinline__ explicit Place(int thread) {
    const int warp = thread / 32;
    lane = thread % 32, warp_n = warp % WARPS_N, warp_k = warp / WARPS_N;
    g = lane / 4, c = 2 * (lane % 4);
  }
  // The warp's strip. A warp beyond the last strip computes the last one again, and its sums are not stored.
  __device__ __forceinline__ int strip(const Problem& p) const { return min(p.n / STRIP + warp_n, p.strips - 1); }
};

// Accumulators of a warp: [tile of 16 columns][tile of 8 tokens] fragments D of mma, whose rows are columns of y.
using Sums = float[4][TOKEN_TILES][4];
