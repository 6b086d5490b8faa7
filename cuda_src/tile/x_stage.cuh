// Activations, global -> shared -> fragments: BLOCK_M tokens by BLOCK_K columns of x, rows of 16-byte chunks.
// Chunk i of row m lies at chunk i ^ (m % 8), so that the eight rows of an 8 x 8 matrix are in different
// banks.
#pragma once
#include "../ptx/cp_async.cuh"
#include "../ptx/ldmatrix.cuh"
#include "gemm_problem.cuh"

constexpr int X_ROW = BLOCK_K / 8;  // chunks
constexpr int X_STAGE = BLOCK_M * X_ROW;
static_assert(X_ROW >= 8, "the swizzle needs rows of 128 bytes");

DEVICE int x_chunk(int m, int i) { return m * X_ROW + (i ^ m % 8); }

// Start copying; tokens from M on and columns from K on are zero.
DEVICE void load_x(uint4* smem_x, const Problem& p, int k) {
#pragma unroll 1
  for (int at = threadIdx.x; at < X_STAGE; at += THREADS) {
    const int m = at / X_ROW, i = at % X_ROW, token = p.first_token + m;
    const bool valid = token < p.M && k + 8 * i < p.K;
    const act_t* source = valid ? p.x + (size_t)token * p.K + k + 8 * i : p.x;
    cp_async_16(shared_address(smem_x + x_chunk(m, i)), source, valid);
  }
}

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
