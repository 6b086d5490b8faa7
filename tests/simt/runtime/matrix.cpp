// ldmatrix and mma.m16n8k16. With g = lane / 4 and c = 2 (lane % 4):
//   a[i]  row g + 8 (i & 1), columns c + 8 (i >> 1) and +1        of A (16 x 16)
//   b[i]  rows c + 8 i and +1 of column g                         of B (16 x 8)
//   d[i]  row g + 8 (i >> 1), column c + (i & 1)                  of D (16 x 8)
//
// Tensor cores do not add in fp32. As measured on hardware (Xie et al., MMA-Sim, arXiv 2511.10909): the exact
// products and the accumulator are aligned to the largest exponent, truncated to 24 (Ampere, eight products
// at a time) or 25 fraction bits (Hopper, sixteen), summed exactly and truncated to fp32.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "runtime.h"

namespace simt {
namespace {

// Shared memory serves 128 bytes a pass: eight rows of 16 bytes take one pass if no two share their banks.
void count_passes(const uint32_t* addresses) {
  int rows_in_bank[8] = {};
  int passes = 1;
  for (int i = 0; i < 8; i++) passes = std::max(passes, ++rows_in_bank[addresses[i] / 16 % 8]);
  state.ldmatrix_wavefronts += passes, state.ldmatrix_ideal++;
}

int exponent(float x, int least) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return x == 0 ? -200 : std::max(int(bits >> 23 & 255) - 127, least);
}

double power_of_two(int e) {
  const uint64_t bits = uint64_t(1023 + e) << 52;
  double d;
  memcpy(&d, &bits, 8);
  return d;
}

struct Tile {
  float a[16][16], b[16][8], d[16][8];
  int a_exp[16][16], b_exp[16][8];
};

// Row `row` of D += A[row, k0:k1] @ B[k0:k1], all products and the accumulator truncated to `bits` fraction bits.
void fused_dot(Tile& t, int row, int k0, int k1, int bits) {
  int e[8];
  double sum[8], scale[8];
  for (int j = 0; j < 8; j++) {
    e[j] = exponent(t.d[row][j], -126);
    for (int k = k0; k < k1; k++) e[j] = std::max(e[j], t.a_exp[row][k] + t.b_exp[k][j]);
    scale[j] = power_of_two(bits - e[j]);
    sum[j] = std::trunc(t.d[row][j] * scale[j]);
  }
  for (int k = k0; k < k1; k++)
    for (int j = 0; j < 8; j++)
      sum[j] += std::trunc(double(t.a[row][k]) * t.b[k][j] * scale[j]);  // below 2^53: exact
  for (int j = 0; j < 8; j++) {
    const double exact = sum[j] * power_of_two(e[j] - bits);
    float truncated = float(exact);
    if (std::isfinite(truncated) && std::fabs(double(truncated)) > std::fabs(exact))
      truncated = std::nextafter(truncated, 0.0f);
    t.d[row][j] = truncated;
  }
}

void fma_chain(Tile& t, int row) {
  for (int k = 0; k < 16; k++)
    for (int j = 0; j < 8; j++) t.d[row][j] = std::fma(t.a[row][k], t.b[k][j], t.d[row][j]);
}

template <class Convert>
void gather(Tile& t, void** all, Convert to_float, int least_exponent) {
  for (int lane = 0; lane < 32; lane++) {
    const auto* m = static_cast<MmaOperands*>(all[lane]);
    const int g = lane / 4, c = 2 * (lane % 4);
    for (int i = 0; i < 4; i++)
      for (int h = 0; h < 2; h++) {
        const int row = g + 8 * (i & 1), k = c + h + 8 * (i >> 1);
        t.a[row][k] = to_float(uint16_t(m->a[i] >> (16 * h)));
        t.a_exp[row][k] = exponent(t.a[row][k], least_exponent);
        if (i < 2) {
          t.b[c + h + 8 * i][g] = to_float(uint16_t(m->b[i] >> (16 * h)));
          t.b_exp[c + h + 8 * i][g] = exponent(t.b[c + h + 8 * i][g], least_exponent);
        }
      }
    for (int i = 0; i < 4; i++) t.d[g + 8 * (i >> 1)][c + (i & 1)] = m->d[i];
  }
}

template <class Convert>
void mma(void** all, Convert to_float, int least_exponent) {
  Tile t;
  gather(t, all, to_float, least_exponent);
  for (int row = 0; row < 16; row++) {
    if (state.mma_model == 90) fused_dot(t, row, 0, 16, 25);
    else if (state.mma_model == 80) fused_dot(t, row, 0, 8, 24), fused_dot(t, row, 8, 16, 24);
    else fma_chain(t, row);
  }
  for (int lane = 0; lane < 32; lane++)
    for (int i = 0; i < 4; i++)
      static_cast<MmaOperands*>(all[lane])->d[i] = t.d[lane / 4 + 8 * (i >> 1)][2 * (lane % 4) + (i & 1)];
}

}  // namespace

void ldmatrix_x4(void** all, uint32_t) {
  uint16_t matrix[4][8][8];
  uint32_t addresses[32];
  Lane* self = state.lane;
  for (int i = 0; i < 32; i++) {  // lane i names row i % 8 of matrix i / 8, and answers for it
    const auto* operands = static_cast<LdmatrixOperands*>(all[i]);
    state.lane = &self->block->lanes[(self->index & ~31) + i];
    const char* row = shared_pointer(operands->address, 16, operands->line);
    check_range(row, 16, false, operands->line);
    memcpy(matrix[i / 8][i % 8], row, 16);
    addresses[i] = operands->address;
  }
  state.lane = self;
  for (int m = 0; m < 4; m++) count_passes(addresses + 8 * m);
  for (int i = 0; i < 32; i++)  // lane i receives row i / 4, columns 2 (i % 4) and +1
    for (int m = 0; m < 4; m++) {
      const auto* operands = static_cast<LdmatrixOperands*>(all[i]);
      const auto& from = matrix[m];
      const int r = i / 4, c = 2 * (i % 4);
      operands->result[m] = operands->transposed ? from[c][r] | uint32_t(from[c + 1][r]) << 16
                                                 : from[r][c] | uint32_t(from[r][c + 1]) << 16;
    }
}

void mma_m16n8k16_f16(void** all, uint32_t) {
  mma(all, [](uint16_t bits) { return float(half::from_bits(bits)); }, -14);
}
void mma_m16n8k16_bf16(void** all, uint32_t) {
  mma(all, [](uint16_t bits) { return float(__nv_bfloat16::from_bits(bits)); }, -126);
}

}  // namespace simt
