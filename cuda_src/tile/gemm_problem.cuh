// What one launch of gemm_w4a16 computes, and which part of it is a block's.
//
// The product is cut into units of BLOCK_N columns by BLOCK_K rows of the weight, numbered down the columns
// first. Every block takes an equal run of them ("stream-K"), whatever the shape, and so all multiprocessors
// stream to the end. A run may begin or end in the middle of a column: those sums go through the workspace
// (see split_k.cuh).
#pragma once
#include "number.cuh"

constexpr int STRIP = 64;  // columns that a warp owns; SLAB is the rows that it takes of each unit, all with one scale
constexpr int STEPS = SLAB / 16;  // of mma along k
constexpr int BLOCK_N = WARPS_N * STRIP;
constexpr int BLOCK_K = WARPS_K * SLAB;
constexpr int THREADS = 32 * WARPS_N * WARPS_K;
constexpr int TOKEN_TILES = BLOCK_M / 8;  // mma takes eight tokens at a time

enum Order { GROUPED, LOCAL, UNORDERED };  // of the weight's rows; as in cutpq/pack.py

using act_t = Number<DTYPE>::One;
using act2_t = Number<DTYPE>::Pair;

struct Problem {
  const act_t* x;
  const uint4* words;
  const half* scales;
  const u8* zeros;
  const int* g_idx;
  int M, N, K;
  int strips;       // of 64 columns in words
  int tiles_k16;    // of 16 rows in words
  int units_k;      // units in a column
  int units;        // in all; times gridDim.x it is below 2^32
  int first_token;  // of this block

  // The run of a block begins with this unit.
  __device__ __forceinline__ int first_unit(u32 block) const { return u32(units) * block / gridDim.x; }
  // The block whose run holds a unit.
  __device__ __forceinline__ int block_of(u32 unit) const {
    return ((unit + 1) * gridDim.x - 1) / u32(units);
  }
};

// A unit of a run, and where it lies.
struct Cursor {
  int unit, column, row;  // in units

  __device__ __forceinline__ Cursor(const Problem& p, int unit)
      : unit(unit), column(unit / p.units_k), row(unit % p.units_k) {}
  __device__ __forceinline__ void advance(const Problem& p) {
    unit++, row++;
    if (row == p.units_k) row = 0, column++;
  }
  __device__ __forceinline__ int n() const { return column * BLOCK_N; }
  __device__ __forceinline__ int k() const { return row * BLOCK_K; }
};

// Where a thread stands: warps are numbered along the columns first.
struct Place {
  int lane, warp_n, warp_k, g, c;  // g = lane / 4, c = 2 (lane % 4), as in ptx/mma.cuh

  __device__ __forceinline__ explicit Place(int thread) {
    const int warp = thread / 32;
    lane = thread % 32, warp_n = warp % WARPS_N, warp_k = warp / WARPS_N;
    g = lane / 4, c = 2 * (lane % 4);
  }
};

// Sums of a warp: of 16 columns, 8 tokens each: [column tile][token tile], transposed (columns are the rows of mma).
using Sums = float[4][TOKEN_TILES][4];
