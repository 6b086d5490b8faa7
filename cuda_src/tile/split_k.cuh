// Sums that belong together: of the warps of a block, and of the blocks that share a column. Every sum is
// taken in an order that the launch fixes, so that the same input gives the same bits on every run.
#pragma once
#include "../ptx/memory_order.cuh"
#include "gemm_problem.cuh"

constexpr int SUMS = 4 * TOKEN_TILES;  // words of 16 bytes, per thread
constexpr int TILE_THREADS =
    32 * WARPS_N;  // as many threads have the sums of a block when all along k are added
constexpr int TILE =
    SUMS * TILE_THREADS;  // words: the sums of a block, word e of thread i at e * TILE_THREADS + i
constexpr int REDUCTION = WARPS_K / 2 * TILE;

DEVICE float4 operator+(float4 a, float4 b) { return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}; }

// Word e of a thread's sums.
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

// smem_sums[0 .. TILE) = the sums of all warps along k, whose number is halved in every round.
DEVICE void reduce_over_warps(float4* smem_sums, Sums& sums, const Place& at) {
#pragma unroll
  for (int half = WARPS_K / 2; half; half /= 2) {
    float4* slot = smem_sums + at.warp_k % half * TILE + at.warp_n * 32 + at.lane;
    if (at.warp_k >= half && at.warp_k < 2 * half)
#pragma unroll
      for (int e = 0; e < SUMS; e++) slot[e * TILE_THREADS] = word_of(sums, e);
    __syncthreads();  // upper half stored
    if (at.warp_k < half)
#pragma unroll
      for (int e = 0; e < SUMS; e++) {
        const float4 sum = word_of(sums, e) + slot[e * TILE_THREADS];
        if (half == 1) slot[e * TILE_THREADS] = sum;
        else set_word(sums, e, sum);
      }
    __syncthreads();  // added: the next round, or whoever wants the sums, may go on
  }
}

// Whether the tokens of a word of the tile exist; those of others are neither stored nor added.
DEVICE bool has_tokens(const Problem& p, int word) {
  return p.m + word / TILE_THREADS % TOKEN_TILES * 8 + word % 4 * 2 < p.M;
}

// Store this block's sums in workspace (columns of units, gridDim.x, gridDim.y, TILE). True in the block that comes
// last of those that share the column: smem_sums then are those of all, added in the order of their rows.
DEVICE bool reduce_over_blocks(float4* smem_sums, u32* smem_arrived, float4* workspace, u32* arrivals,
                               const Problem& p) {
  const size_t column = (size_t)blockIdx.z * gridDim.x + blockIdx.x;
  float4* parts = workspace + column * gridDim.y * TILE;
  float4* mine = parts + blockIdx.y * TILE;
#pragma unroll 1
  for (int word = threadIdx.x; word < TILE; word += THREADS)
    if (has_tokens(p, word)) mine[word] = smem_sums[word];
  __syncthreads();  // sums stored
  if (threadIdx.x == 0) *smem_arrived = atomic_add_acq_rel(arrivals + column, 1);
  __syncthreads();  // number of arrivals known
  if (*smem_arrived != gridDim.y - 1) return false;
  if (threadIdx.x == 0) arrivals[column] = 0;  // as the next launch wants it
#pragma unroll 1
  for (int word = threadIdx.x; word < TILE; word += THREADS) {
    if (!has_tokens(p, word)) continue;
    float4 sum = parts[word];
    for (u32 part = 1; part < gridDim.y; part++) sum = sum + parts[part * TILE + word];
    smem_sums[word] = sum;
  }
  __syncthreads();  // all sums here
  return true;
}
