// Epilogue of gemm_w4a16: y = act(sums + bias), rounded once. A thread writes an octet, eight columns of one token in
// one 16-byte word, and collects them from the fragments of eight lanes.
#pragma once
#include "activation.cuh"
#include "split_k.cuh"

// sum = one token's sums of an octet. Octet 2t + h of a strip is the columns g + 8h, g = 0 ... 7, of its t-th 16.
DEVICE void read_octet(float (&sum)[8], const float4* smem_sums, int octet, int m) {
  const int t = octet / 2 % 4, h = octet % 2;
  const int word = (t * TOKEN_TILES + m / 8) * TILE_THREADS + octet / 8 * 32 + m % 8 / 2;
#pragma unroll
  for (int g = 0; g < 8; g++)
    sum[g] = reinterpret_cast<const float*>(smem_sums + word + 4 * g)[2 * h + m % 2];
}

DEVICE void add_bias(float (&sum)[8], const float* bias, int n) {
  if (!bias) return;
#pragma unroll
  for (int g = 0; g < 8; g++) sum[g] += bias[n + g];
}

DEVICE void write_octet(act_t* y, const float (&v)[8]) {
  using Two = Number<DTYPE>;
  *reinterpret_cast<uint4*>(y) = make_uint4(as_u32(Two::pair(v[0], v[1])), as_u32(Two::pair(v[2], v[3])),
                                            as_u32(Two::pair(v[4], v[5])), as_u32(Two::pair(v[6], v[7])));
}

// y = act(sums + bias) for this block's columns. Where GATED, y = act(gate) * up; octets of gate and up alternate.
DEVICE void store_y(act_t* y, const float4* smem_sums, const float* bias, const Problem& p) {
  const int tokens = min(BLOCK_M, p.M - p.m), octets = min(BLOCK_N, p.N - p.n) / 8;
  constexpr int STEP = GATED ? 2 : 1;  // octets of sums for each octet of y
#pragma unroll 1
  for (int i = threadIdx.x; i < tokens * octets / STEP; i += THREADS) {
    const int m = i % tokens, octet = i / tokens * STEP, column = p.n + 8 * octet;
    float sum[8];
    read_octet(sum, smem_sums, octet, m);
    add_bias(sum, bias, column);
#pragma unroll
    for (int g = 0; g < 8; g++) sum[g] = activate(sum[g]);
    if constexpr (GATED) {
      float up[8];
      read_octet(up, smem_sums, octet + 1, m);
      add_bias(up, bias, column + 8);
#pragma unroll
      for (int g = 0; g < 8; g++) sum[g] *= up[g];
    }
    write_octet(y + (size_t)(p.m + m) * (p.N / STEP) + column / STEP, sum);
  }
}
