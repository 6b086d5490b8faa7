// What one launch of gemm_w4a16 computes, and which part of it is a block's.
//
// The weight is cut into units of BLOCK_N columns by BLOCK_K rows. A block takes BLOCK_M tokens (blockIdx.x) and one
// column of units (blockIdx.z), whole or, with gridDim.y others, a run of it. Runs begin at the same rows in every
// column, so that a column is summed in the same order wherever it stands; sums of parts are added in split_k.cuh.
// Blocks of the same codes and other tokens follow each other, so that these find them in L2.
#pragma once
#include "number.cuh"

constexpr int STRIP = 64;  // columns that a warp owns; SLAB is the rows that it takes of each unit, all with one scale
constexpr int STEPS = SLAB / 16;  // of mma along k
constexpr int WARPS = WARPS_N * WARPS_K;
constexpr int BLOCK_N = WARPS_N * STRIP;
constexpr int BLOCK_K = WARPS_K * SLAB;
constexpr int THREADS = 32 * WARPS;
constexpr int TOKEN_TILES = BLOCK_M / 8;  // mma takes eight tokens at a time

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
  int strips;     // of 64 columns in words
  int tiles_k16;  // of 16 rows in words
  int m, n, k;    // first token, column and row of this block
  int units;      // of this block, one below the other

  __device__ __forceinline__ Problem(const act_t* x, const uint4* words, const half* scales, const u8* zeros,
                                     const int* g_idx, int M, int N, int K, int strips, int tiles_k16)
      : x(x), words(words), scales(scales), zeros(zeros), g_idx(g_idx), M(M), N(N), K(K), strips(strips),
        tiles_k16(tiles_k16) {
    const u32 units_k = (K + BLOCK_K - 1) / BLOCK_K, first = units_k * blockIdx.y / gridDim.y;
    m = blockIdx.x * BLOCK_M, n = blockIdx.z * BLOCK_N, k = first * BLOCK_K;
    units = units_k * (blockIdx.y + 1) / gridDim.y - first;
  }
  // How many units, from this block's first on, have a row so far below their own first one.
  __device__ __forceinline__ int units_with(int row) const { return (K - k - row + BLOCK_K - 1) / BLOCK_K; }
};

// Where a thread stands: warps are numbered along the columns first.
struct Place {
  int lane, warp_n, warp_k, g, c;  // g = lane / 4, c = 2 (lane % 4), as in ptx/mma.cuh

  __device__ __forceinline__ explicit Place(int thread) {
    const int warp = thread / 32;
    lane = thread % 32, warp_n = warp % WARPS_N, warp_k = warp / WARPS_N;
    g = lane / 4, c = 2 * (lane % 4);
  }
  // The strip that the warp owns; where there is none, the last one again, whose sums then nobody stores.
  __device__ __forceinline__ int strip(const Problem& p) const { return min(p.n / STRIP + warp_n, p.strips - 1); }
};

// Sums of a warp: of 16 columns, 8 tokens each: [column tile][token tile], transposed (columns are the rows of mma).
using Sums = float[4][TOKEN_TILES][4];
