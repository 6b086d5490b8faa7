// rotate_qkv: rotary embedding, and keys and values into the cache.   caller: cutpq/model/attention.py
//   q[b, h / rep, t, h % rep] = rotate(q's head h),   keys[b, h, position] = rotate(k's head h)
//   values[b, h, position] = v's head h
// where t counts the new tokens of sequence b. rotate multiplies the complex number of features i and i + D / 2 of a
// head by cos + sqrt(-1) sin, in float32, rounded once. A thread owns eight such pairs of one head, so that it reads
// and writes 16-byte words.
#include "target.cuh"
#include "tile/eight.cuh"

// (a, b) = (a + sqrt(-1) b) (cos + sqrt(-1) sin) for eight complex numbers.
DEVICE void rotate_eight(float* a, float* b, const float* cosines, const float* sines) {
#pragma unroll
  for (int half = 0; half < 8; half += 4) {
    const float4 cosine = *reinterpret_cast<const float4*>(cosines + half);
    const float4 sine = *reinterpret_cast<const float4*>(sines + half);
    const float cos[4] = {cosine.x, cosine.y, cosine.z, cosine.w}, sin[4] = {sine.x, sine.y, sine.z, sine.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float real = a[half + i], imaginary = b[half + i];
      a[half + i] = fmaf(-imaginary, sin[i], real * cos[i]);
      b[half + i] = fmaf(real, sin[i], imaginary * cos[i]);
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS)
rotate_qkv(const act_t* __restrict__ qkv,      // (M, (heads + 2 * kv_heads) * D)
           const float* __restrict__ cosines,  // (M, D / 2), or null for no rotation
           const float* __restrict__ sines,    // (M, D / 2), or null
           const int* __restrict__ places,     // (M,) b * T + t of each token, or null where token m has m
           const int* __restrict__ positions,  // (batch, T)
           act_t* __restrict__ q,              // (batch, kv_heads, T, rep, D)
           act_t* __restrict__ keys,           // (batch, kv_heads, length, D)
           act_t* __restrict__ values,         // (batch, kv_heads, length, D)
           int M,
           int T,
           int length,
           int kv_heads,
           int rep,                            // query heads that share a key/value head
           int D) {                            // a multiple of 16
  const int threads_of_head = D / 16, heads = kv_heads * rep, all_heads = heads + 2 * kv_heads;
  const int thread = blockIdx.x * THREADS + threadIdx.x;
  const int row = thread / threads_of_head, i = thread % threads_of_head * 8;
  const int m = row / all_heads, head = row % all_heads;
  if (m >= M) return;

  const int place = places ? places[m] : m, sequence = place / T;
  act_t* to = q;
  size_t to_row;
  if (head < heads) {
    to_row = (size_t(sequence * kv_heads + head / rep) * T + place % T) * rep + head % rep;
  } else {
    to = head < heads + kv_heads ? keys : values;
    to_row = size_t(sequence * kv_heads + (head - heads) % kv_heads) * length + positions[place];
  }
  to += to_row * D + i;

  float a[8], b[8];
  const act_t* from = qkv + size_t(row) * D + i;
  load_eight(a, from, 0, 8);
  load_eight(b, from + D / 2, 0, 8);
  if (cosines && head < heads + kv_heads) {
    const size_t angle = size_t(m) * (D / 2) + i;
    rotate_eight(a, b, cosines + angle, sines + angle);
  }
  store_eight(to, 0, 8, a);
  store_eight(to + D / 2, 0, 8, b);
}
