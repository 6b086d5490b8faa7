// Activations, global -> shared -> fragments. A stage holds BLOCK_M tokens by BLOCK_K columns of x as rows of 16-byte
// chunks. Chunk i of row m lies at place i ^ (m % 8), so that ldmatrix reads the eight rows of a matrix from different
// banks.
#pragma once
#include "../ptx/cp_async.cuh"
#include "../ptx/ldmatrix.cuh"
#include "gemm_problem.cuh"

constexpr int X_ROW = BLOCK_K / 8;  // chunks of a row
constexpr int X_STAGE = BLOCK_M * X_ROW;
static_assert(X_ROW >= 8, "the swizzle needs rows of 128 bytes");
static_assert(THREADS % X_ROW == 0, "a thread copies one chunk of every so many rows");

DEVICE int x_chunk(int m, int i) { return m * X_ROW + (i ^ m % 8); }

struct XRing {
  const act_t* source;  // the chunk that this thread copies next; it also copies that chunk of every ROWS-th row below
  int tokens;           // rows of x left from that row on
  int units;            // units of this block that have this chunk; 0 if its token is beyond M
  u32 target;           // shared address of the chunk in stage 0
  u32 matrix;           // shared address in stage 0 of the row that this lane gives to ldmatrix

  __device__ __forceinline__ XRing(const uint4* smem_x, const Problem& p, const Place& at) {
    const int m = threadIdx.x / X_ROW, i = threadIdx.x % X_ROW;
    source = p.x + (size_t)(p.m + m) * p.K + p.k + 8 * i;
    tokens = p.M - p.m - m, units = tokens > 0 ? p.units_with(8 * i) : 0;
    target = shared_address(smem_x) + 16 * x_chunk(m, i);
    // Two of ldmatrix's four matrices are the chunks of a step; the other two are those of the next eight tokens or,
    // where there are only eight, of the next step.
    const int number = at.lane / 8, next = number / 2, chunk = at.warp_k * (SLAB / 8) + number % 2;
    matrix = shared_address(smem_x + (TOKEN_TILES > 1 ? x_chunk(at.lane % 8 + 8 * next, chunk)
                                                      : x_chunk(at.lane % 8, chunk + 2 * next)));
  }

  // Starts copying the next unit; zeros for tokens from M on and columns from K on.
  __device__ __forceinline__ void load(int stage, int unit, const Problem& p) const {
    constexpr int ROWS = THREADS / X_ROW;
    if (THREADS > X_STAGE && threadIdx.x >= X_STAGE) return;
#pragma unroll
    for (int row = 0; row < BLOCK_M; row += ROWS) {  // m < ROWS, a power of two, so m + row is m ^ row
      const u32 swizzled = (target + 16 * stage * X_STAGE) ^ 16 * (row % 8);
      cp_async_16(swizzled + 16 * row * X_ROW, source + (size_t)row * p.K, unit < units && (row == 0 || row < tokens));
    }
  }
  __device__ __forceinline__ void go_down() { source += BLOCK_K; }

  // frag_x = operands B of mma for two steps and every token tile. The number of a later step sets address bits that
  // are zero for the first two steps, so that an exclusive or moves the swizzled address.
  __device__ __forceinline__ void fragments(u32 (&frag_x)[2][TOKEN_TILES][2], int stage, int step) const {
    const u32 first = matrix + 16 * stage * X_STAGE;
    if constexpr (TOKEN_TILES == 1) {
      set(frag_x[0][0], frag_x[1][0], first ^ 32 * step);
    } else {
#pragma unroll
      for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < TOKEN_TILES; j += 2)
          set(frag_x[i][j], frag_x[i][j + 1], (first ^ 32 * (step + i)) + 16 * 8 * j * X_ROW);
    }
  }

  __device__ __forceinline__ static void set(u32 (&a)[2], u32 (&b)[2], u32 address) {
    u32 four[4];
    ldmatrix_x4(four, address);
    a[0] = four[0], a[1] = four[1], b[0] = four[2], b[1] = four[3];
  }
};
