// Activations, global -> shared -> fragments: BLOCK_M tokens by BLOCK_K columns of x, rows of 16-byte chunks.
// Chunk i of row m lies at chunk i ^ (m % 8), so that the eight rows of an 8 x 8 matrix are in different banks.
#pragma once
#include "../ptx/cp_async.cuh"
#include "../ptx/ldmatrix.cuh"
#include "gemm_problem.cuh"

constexpr int X_ROW = BLOCK_K / 8;  // chunks
constexpr int X_STAGE = BLOCK_M * X_ROW;
static_assert(X_ROW >= 8, "the swizzle needs rows of 128 bytes");
static_assert(THREADS % (8 * X_ROW) == 0 || THREADS >= X_STAGE, "a thread copies one chunk of every so many rows");

DEVICE int x_chunk(int m, int i) { return m * X_ROW + (i ^ m % 8); }

// What a thread copies of every unit: chunk `i` of row `m`, and of every THREADS / X_ROW-th row after it.
struct XLoader {
  const act_t* source;
  int m, i;

  __device__ __forceinline__ explicit XLoader(const Problem& p) : m(threadIdx.x / X_ROW), i(threadIdx.x % X_ROW) {
    source = p.x + (size_t)(p.first_token + m) * p.K + 8 * i;
  }

  // Start copying columns k ...; tokens from M on and columns from K on are zero.
  __device__ __forceinline__ void load(uint4* smem_x, const Problem& p, int k) const {
    constexpr int ROWS = THREADS / X_ROW;
    if (threadIdx.x >= X_STAGE) return;
#pragma unroll
    for (int row = 0; row < BLOCK_M; row += ROWS) {
      const bool valid = p.first_token + m + row < p.M && k + 8 * i < p.K;
      const u32 target = shared_address(smem_x + x_chunk(m, i) + row * X_ROW);  // rows 8 apart have one swizzle
      cp_async_16(target, valid ? source + (size_t)row * p.K + k : p.x, valid);
    }
  }
};

// Operand B of mma, for every token tile: the 16 columns of x that begin with chunk i.
DEVICE void x_fragments(u32 (&frag_x)[TOKEN_TILES][2], const uint4* smem_x, int i, int lane) {
  const int chunk = i + lane / 8 % 2;
  if constexpr (TOKEN_TILES == 1) {
    ldmatrix_x2(frag_x[0], shared_address(smem_x + x_chunk(lane % 8, chunk)));
  } else {
#pragma unroll
    for (int j = 0; j < TOKEN_TILES; j += 2) {  // two token tiles by two chunks are four matrices
      u32 both[4];
      ldmatrix_x4(both, shared_address(smem_x + x_chunk(8 * j + lane / 16 * 8 + lane % 8, chunk)));
      frag_x[j][0] = both[0], frag_x[j][1] = both[1];
      frag_x[j + 1][0] = both[2], frag_x[j + 1][1] = both[3];
    }
  }
}
