// activation: the features between an MLP's two products.   caller: cutpq/ops/activation.py
//   y[m, j] = act(x[m, j]);   where GATED, y[m, j] = act(gate) * up: x alternates eight gate and eight up features
// gemm_w4a16 activates in its epilogue; this kernel serves the products of cuBLAS. It computes in float32 and rounds
// once. A thread owns eight features, so that its loads and stores are 16-byte words.
#include "target.cuh"
#include "tile/activation.cuh"
#include "tile/eight.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
activation(const act_t* x,  // (8 * octets,), or (16 * octets,) where GATED
           act_t* y,        // (8 * octets,); y may be x where not GATED
           int octets) {
  const int octet = blockIdx.x * THREADS + threadIdx.x;
  if (octet >= octets) return;
  const size_t from = size_t(octet) * (GATED ? 16 : 8);
  float v[8];
  load_eight(v, x + from, 0, 8);
#pragma unroll
  for (int i = 0; i < 8; i++) v[i] = activate(v[i]);
  if constexpr (GATED) {
    float up[8];
    load_eight(up, x + from, 8, 16);
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] *= up[i];
  }
  store_eight(y + size_t(octet) * 8, 0, 8, v);
}
