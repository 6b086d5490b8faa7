// dequant: packed codes -> plain weight.   caller: cutpq/ops/dequant.py
//   weight[row, j] = (code[k, n] - zeros[g, n]) * scales[g, n],   n = first_column + j
//   g = g_idx[k] where LOOKUP is 1, else k / group_size;   row = rows[k] where rows is given, else k
// The product is exact in float32 and rounded once to act_t. A thread owns 32 rows of two columns, so that a warp
// writes 128 bytes of a row; it fetches scales only when the group changes.
#include "target.cuh"
#include "tile/codes_fragments.cuh"
#include "tile/number.cuh"

using Codes = FragmentCodes<BITS>;
using act_t = Number<DTYPE>::One;
using act2_t = Number<DTYPE>::Pair;

// Scale and zero of one column of one group.
struct Grid {
  float scale;
  int zero;
  __device__ __forceinline__ float value(u32 code) const { return float(int(code) - zero) * scale; }
};

DEVICE Grid grid_at(const half* scales, const u8* zeros, int group, int n, int N) {
  const size_t at = Codes::scale_at(group, n, N);
  return {to_float(scales[at]), int(zeros[at])};
}

extern "C" __global__ void __launch_bounds__(THREADS)
dequant(const u32* __restrict__ words,    // codes, laid out as tile/codes_fragments.cuh says
        const half* __restrict__ scales,  // (G, N), laid out as the codes
        const u8* __restrict__ zeros,     // (G, N), laid out as the codes
        const int* __restrict__ g_idx,    // (padded_K,), or null
        const int* __restrict__ rows,     // (K,) destination of each row, or null
        act_t* __restrict__ weight,       // (K, columns)
        int K,                            // rows of `weight`
        int padded_K,                     // rows in `words`
        int N,                            // columns in `words`, scales and zeros
        int group_size,                   // rows of a group; without LOOKUP a multiple of 32: one group a thread
        int first_column,
        int columns) {                    // even: a thread owns two
  const int j = 2 * (blockIdx.x * THREADS + threadIdx.x), n = first_column + j;
  const int block = blockIdx.y, first_row = block * 32;
  if (j >= columns) return;

  const Codes left(words, block, n, padded_K), right(words, block, n + 1, padded_K);
  Grid grid_left, grid_right;
  int group_before = -1;
#pragma unroll
  for (int i = 0; i < 32; i++) {
    const int k = first_row + i;
    if (k >= K) return;
    const int group = LOOKUP ? g_idx[k] : first_row / group_size;
    if (group != group_before) {
      grid_left = grid_at(scales, zeros, group, n, N), grid_right = grid_at(scales, zeros, group, n + 1, N);
      group_before = group;
    }
    const size_t row = rows ? rows[k] : k;
    *reinterpret_cast<act2_t*>(weight + row * columns + j) =
        Number<DTYPE>::pair(grid_left.value(left.at(i)), grid_right.value(right.at(i)));
  }
}
