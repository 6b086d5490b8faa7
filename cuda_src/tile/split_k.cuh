// Split-K reduction: adds the partial sums of the warps of a block, then of the blocks that share a column of units.
// The launch alone fixes the order of additions, so that the same input gives the same bits on every run.
#pragma once
#include "../ptx/memory_order.cuh"
#include "gemm_problem.cuh"

constexpr int SUMS = 4 * TOKEN_TILES;  // accumulators of a thread, in 16-byte words
constexpr int TILE_THREADS = 32 * WARPS_N;  // threads that hold a block's sums once its warps along k are added up
constexpr int TILE = SUMS * TILE_THREADS;   // words of a block's sums: word e of thread i is at e * TILE_THREADS + i
constexpr int REDUCTION = WARPS_K / 2 * TILE;

DEVICE float4 operator+(float4 a, float4 b) { return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}; }

// Word e of a thread's accumulators.
DEVICE float4 word_of(const Sums& sums, int e) {
  const float (&d)[4] = sums[e / TOKEN_TILES][e % TOKEN_TILES];
  return {d[0], d[1], d[2], d[3]};
}
DEVICE void set_word(Sums& sums, int e, float4 v) {
  float (&d)[4] = sums[e / TOKEN_TILES][e % TOKEN_TILES];
  d[0] = v.x, d[1] = v.y, d[2] = v.z, d[3] = v.w;
}
DEVICE void clear(Sums& sums) {
#pragma unroll
  for (int e = 0; e < SUMS; e++) set_word(sums, e, {0.0f, 0.0f, 0.0f, 0.0f});
}

// smem_sums[0 .. TILE) = the sums over all warps along k. Every round adds the upper half of the warps to the lower
// half.
DEVICE void reduce_over_warps(float4* smem_sums, Sums& sums, const Place& at) {
#pragma unroll
  for (int half = WARPS_K / 2; half; half /= 2) {
    float4* slot = smem_sums + at.warp_k % half * TILE + at.warp_n * 32 + at.lane;
    if (at.warp_k >= half && at.warp_k < 2 * half)
#pragma unroll
      for (int e = 0; e < SUMS; e++) slot[e * TILE_THREADS] = word_of(sums, e);
    __syncthreads();  // the upper half of the warps has stored its sums
    if (at.warp_k < half)
#pragma unroll
      for (int e = 0; e < SUMS; e++) {
        const float4 sum = word_of(sums, e) + slot[e * TILE_THREADS];
        if (half == 1) slot[e * TILE_THREADS] = sum;
        else set_word(sums, e, sum);
      }
    __syncthreads();  // the sums are read, and after the last round stored
  }
}

// Whether a word of the tile belongs to tokens below M; other words are neither stored nor added.
DEVICE bool has_tokens(const Problem& p, int word) {
  return p.m + word / TILE_THREADS % TOKEN_TILES * 8 + word % 4 * 2 < p.M;
}

// Stores this block's sums in workspace (columns of units, gridDim.x, gridDim.y, TILE). Returns true in the block that
// arrives last of those that share the column: smem_sums then holds the sums over all of them, added in order of rows.
DEVICE bool reduce_over_blocks(float4* smem_sums, u32* smem_arrived, float4* workspace, u32* arrivals,
                               const Problem& p) {
  const size_t column = (size_t)blockIdx.z * gridDim.x + blockIdx.x;
  float4* parts = workspace + column * gridDim.y * TILE;
  float4* mine = parts + blockIdx.y * TILE;
#pragma unroll 1
  for (int word = threadIdx.x; word < TILE; word += THREADS)
    if (has_tokens(p, word)) mine[word] = smem_sums[word];
  __syncthreads();  // this block's sums are stored
  if (threadIdx.x == 0) *smem_arrived = atomic_add_acq_rel(arrivals + column, 1);
  __syncthreads();  // *smem_arrived is written
  if (*smem_arrived != gridDim.y - 1) return false;
  if (threadIdx.x == 0) arrivals[column] = 0;  // the next launch expects zero counters
#pragma unroll 1
  for (int word = threadIdx.x; word < TILE; word += THREADS) {
    if (!has_tokens(p, word)) continue;
    float4 sum = parts[word];
    for (u32 part = 1; part < gridDim.y; part++) sum = sum + parts[part * TILE + word];
    smem_sums[word] = sum;
  }
  __syncthreads();  // the total is in smem_sums
  return true;
}
