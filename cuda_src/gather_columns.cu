// gather_columns: y[m, j] = x[m, perm[j]].   caller: cutpq/ops/gather.py
// A thread owns eight neighbouring columns: it reads their indices once, and for every row it gathers eight numbers
// and writes 16 bytes. The grid splits columns before rows, so that many blocks share a single row.
#include "ptx/dependent_launch.cuh"
#include "target.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
gather_columns(const u16* __restrict__ x,   // (M, K) numbers of 16 bits
               const int* __restrict__ perm,  // (columns,), each 0 <= perm[j] < K
               uint4* __restrict__ y,       // (M, columns / 8), eight numbers each
               int M,
               int K,
               int columns) {               // a multiple of 8
  let_next_kernel_start();
  const int j = 8 * (blockIdx.x * THREADS + threadIdx.x);
  if (j >= columns) return;
  int source[8];
#pragma unroll
  for (int i = 0; i < 8; i++) source[i] = perm[j + i];
  for (int m = blockIdx.y; m < M; m += gridDim.y) {
    const u16* row = x + (size_t)m * K;
    u32 pair[4];
#pragma unroll
    for (int i = 0; i < 4; i++) pair[i] = row[source[2 * i]] | u32(row[source[2 * i + 1]]) << 16;
    y[((size_t)m * columns + j) / 8] = make_uint4(pair[0], pair[1], pair[2], pair[3]);
  }
}
