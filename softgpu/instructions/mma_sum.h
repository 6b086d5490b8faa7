// How tensor cores add. They do not round every sum: as measured on hardware (Xie et al., MMA-Sim, arXiv 2511.10909),
// the exact products and the accumulator are cut to some fraction bits below the largest of their exponents, added
// exactly, and cut to float32. Hopper adds 16 products at a time with 25 bits; Ampere and Ada 8 with 24.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>

#include "../ptx/text.h"

namespace softgpu {

template <int K>
struct MmaTile {
  float a[16][K];
  alignas(64) float b[K][8];
  alignas(64) float d[16][8];
};

// least: the exponent of the format's subnormal numbers
inline int exponent_of(float x, int least) {
  return x == 0 ? -200 : std::max(int(std::bit_cast<u32>(x) >> 23 & 255) - 127, least);
}
inline double power_of_two(int e) { return std::bit_cast<double>(u64(1023 + e) << 52); }
inline float cut_to_float(double exact) {
  const float f = float(exact);
  const bool beyond = std::isfinite(f) && std::fabs(double(f)) > std::fabs(exact);
  return beyond ? std::bit_cast<float>(std::bit_cast<u32>(f) - 1) : f;
}

// Row `row` of D += A @ B, for k in [from, to).
template <int K>
void add_products(MmaTile<K>& t, const int (&a_exponent)[16][K], const int (&b_exponent)[K][8], int row, int from, int to, int bits) {
  int e[8];
  double scale[8], sum[8];
  for (int n = 0; n < 8; n++) e[n] = exponent_of(t.d[row][n], -126);
  for (int k = from; k < to; k++)
    for (int n = 0; n < 8; n++) e[n] = std::max(e[n], a_exponent[row][k] + b_exponent[k][n]);
  for (int n = 0; n < 8; n++) {
    scale[n] = power_of_two(bits - e[n]);
    sum[n] = __builtin_trunc(double(t.d[row][n]) * scale[n]);
  }
  for (int k = from; k < to; k++) {
    const double x = t.a[row][k];
    for (int n = 0; n < 8; n++) sum[n] += __builtin_trunc(x * double(t.b[k][n]) * scale[n]);  // below 2^53: exact
  }
  for (int n = 0; n < 8; n++) t.d[row][n] = cut_to_float(sum[n] * power_of_two(e[n] - bits));
}

template <int K>
void sum_tile(MmaTile<K>& t, int least, int at_a_time, int bits) {
  int a_exponent[16][K];
  alignas(64) int b_exponent[K][8];
  for (int r = 0; r < 16; r++)
    for (int k = 0; k < K; k++) a_exponent[r][k] = exponent_of(t.a[r][k], least);
  for (int k = 0; k < K; k++)
    for (int n = 0; n < 8; n++) b_exponent[k][n] = exponent_of(t.b[k][n], least);
  for (int row = 0; row < 16; row++)
    for (int k = 0; k < K; k += at_a_time) add_products(t, a_exponent, b_exponent, row, k, k + at_a_time, bits);
}
template <int K>
void sum_as_hopper(MmaTile<K>& t, int least) {
  sum_tile(t, least, K, 25);
}
template <int K>
void sum_as_ampere(MmaTile<K>& t, int least) {
  sum_tile(t, least, 8, 24);
}

}  // namespace softgpu
