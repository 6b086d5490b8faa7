// round_rows: rows of a block rounded to codes one after the other by GPTQ.   caller: cutpq/quantization/round_rows.py
//   q[i] = round(v[i]);  e[i] = v[i] - q[i], or q[i] - before[i];  v[j] -= coupling[i, j] e[i] for all j > i
// A block owns COLUMNS columns and all rows, a warp eight of these columns: four lanes share a column, lane p has its
// rows p, p + 4, p + 8, ... in shared memory, which no other lane touches. The row whose turn it is goes to all four by
// a shuffle, they round it alike, and each subtracts the error from its own later rows. Products and differences are
// rounded one by one, so that the result has the bits of the formula.
#include "target.cuh"

constexpr int LANES = 4;                // that share a column
constexpr int WARP_COLUMNS = 32 / LANES;
constexpr int COLUMNS = THREADS / LANES;
constexpr int PITCH = COLUMNS + 8;      // four rows of eight columns fall into 32 banks

extern "C" __global__ void __launch_bounds__(THREADS)
round_rows(const float* __restrict__ v,         // (R, N) what the rows should be
           const float* __restrict__ coupling,  // (R, R) above the diagonal
           const float* __restrict__ scales,    // (G, N)
           const float* __restrict__ zeros,     // (G, N)
           const int* __restrict__ group,       // (R,) of 0 .. G-1
           const float* __restrict__ before,    // (R, N), or null
           u8* __restrict__ codes,              // (R, N)
           float* __restrict__ q,               // (R, N)
           float* __restrict__ e,               // (R, N)
           int R,
           int N,
           float most) {                        // the largest code
  DYNAMIC_SHARED(smem);
  Carver carver(smem);
  const int lane = threadIdx.x % 32, part = lane / WARP_COLUMNS;
  const int column = threadIdx.x / 32 * WARP_COLUMNS + lane % WARP_COLUMNS;
  const int n = blockIdx.x * COLUMNS + column;
  const bool inside = n < N;
  float* smem_v = carver.take<float>(R * PITCH) + column;

  for (int i = part; i < R; i += LANES) smem_v[i * PITCH] = inside ? v[size_t(i) * N + n] : 0.0f;
  for (int i = 0; i < R; i++) {
    const int owner = i % LANES;
    float w = part == owner ? smem_v[i * PITCH] : 0.0f;
    w = __shfl_sync(FULL_WARP, w, owner * WARP_COLUMNS + lane % WARP_COLUMNS);
    const size_t at = size_t(i) * N + n, of_group = size_t(group[i]) * N + n;
    const float scale = inside ? scales[of_group] : 1.0f, zero = inside ? zeros[of_group] : 0.0f;
    const float code = fminf(fmaxf(__fadd_rn(rintf(__fdiv_rn(w, scale)), zero), 0.0f), most);
    const float rounded = __fmul_rn(__fsub_rn(code, zero), scale);
    const float error = !inside || before == nullptr ? __fsub_rn(w, rounded) : __fsub_rn(rounded, before[at]);
    if (inside && part == owner) {
      codes[at] = u8(code);
      q[at] = rounded;
      e[at] = error;
    }
    for (int j = i + 1 + (part - i - 1 + R * LANES) % LANES; j < R; j += LANES)
      smem_v[j * PITCH] = __fsub_rn(smem_v[j * PITCH], __fmul_rn(coupling[size_t(i) * R + j], error));
  }
}
