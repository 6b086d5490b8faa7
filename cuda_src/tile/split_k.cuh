// Sums that belong together: of the warps of a block, and of the blocks that share a column. Every sum is
// taken in an order that the launch fixes, so that the same input gives the same bits on every run. They end
// in shared memory, because there they occupy no registers while the next ones are taken.
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

// Columns that several blocks have summed parts of, in workspace (gridDim.y, gridDim.x, 2, TILE): a block's
// first column in slot 0, another one in slot 1. There is no third: what lies between the first and the last is whole.
struct SharedColumn {
  int first_unit, first, last;  // the blocks that share it

  __device__ __forceinline__ SharedColumn(const Problem& p, int column) : first_unit(column * p.units_k) {
    first = p.block_of(first_unit), last = p.block_of(first_unit + p.units_k - 1);
  }
  __device__ __forceinline__ bool is_shared() const { return first != last; }

  __device__ __forceinline__ float4* slot(float4* workspace, const Problem& p, int block) const {
    const int number = p.first_unit(block) < first_unit;  // its run began before this column
    return workspace + (((size_t)blockIdx.y * gridDim.x + block) * 2 + number) * TILE;
  }
};

// Whether the tokens of a word of the tile exist; those of others are neither stored nor added.
DEVICE bool has_tokens(const Problem& p, int word) {
  return p.first_token + word / TILE_THREADS % TOKEN_TILES * 8 + word % 4 * 2 < p.M;
}

// Store this block's sums. True in the block that comes last: smem_sums then are those of all, added in block order.
DEVICE bool reduce_over_blocks(float4* smem_sums, u32* smem_arrived, float4* workspace, u32* counter,
                               const Problem& p, const SharedColumn& shared) {
  float4* mine = shared.slot(workspace, p, blockIdx.x);
#pragma unroll 1
  for (int word = threadIdx.x; word < TILE; word += THREADS)
    if (has_tokens(p, word)) mine[word] = smem_sums[word];
  __syncthreads();  // sums stored
  if (threadIdx.x == 0) *smem_arrived = atomic_add_acq_rel(counter, 1);
  __syncthreads();  // number of arrivals known
  if (*smem_arrived != u32(shared.last - shared.first)) return false;
  if (threadIdx.x == 0) *counter = 0;  // as the next launch wants it
#pragma unroll 1
  for (int word = threadIdx.x; word < TILE; word += THREADS) {
    if (!has_tokens(p, word)) continue;
    float4 sum = shared.slot(workspace, p, shared.first)[word];
    for (int block = shared.first + 1; block <= shared.last; block++)
      sum = sum + shared.slot(workspace, p, block)[word];
    smem_sums[word] = sum;
  }
  __syncthreads();  // all sums here
  return true;
}
