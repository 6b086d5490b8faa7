// Attention to different keys, put together: a part is what a warp or a block knows after its own keys.
//
//   y = sum over parts of 2^(largest - top) * sums / sum over parts of 2^(largest - top) * total
//
// A part is an array of floats: the fragments `sums` of every lane (for all heads that HEADS allows), then largest and
// total of each head. Parts are added in their order, so that the same input gives the same bits.
#pragma once
#include "attend_tile.cuh"

constexpr int PART = HEADS * D + 2 * HEADS;  // floats

constexpr int PARTS_AT_A_TIME = 8 / HALVES;  // whose loads are in flight together

template <int FLOATS>
struct FragmentOf;
template <>
struct FragmentOf<2> { using type = float2; };
template <>
struct FragmentOf<4> { using type = float4; };
using Fragment = FragmentOf<2 * HALVES>::type;  // one mma's sums: heads of the lane times two features

DEVICE Fragment& fragment_of(float* part, int e) { return reinterpret_cast<Fragment*>(part)[e * 32 + threadIdx.x % 32]; }
DEVICE float2& head_of(float* part, int half) {
  return reinterpret_cast<float2*>(part + HEADS * D)[half * 8 + threadIdx.x % 32 / 4];
}

DEVICE void store_part(float* part, const Attention& attention) {
#pragma unroll
  for (int e = 0; e < D / 8; e++) {
    Fragment fragment;
#pragma unroll
    for (int i = 0; i < 2 * HALVES; i++) reinterpret_cast<float*>(&fragment)[i] = attention.sums[e][i];
    fragment_of(part, e) = fragment;
  }
#pragma unroll
  for (int half = 0; half < HALVES; half++) {
    const float total = attention.total_of(half);
    if (threadIdx.x % 4 == 0) head_of(part, half) = make_float2(attention.largest[half], total);
  }
}

// The sum of several parts, for 8 * WIDTH features from `first` on, as a lane has it.
template <int WIDTH>
struct CombinedPiece {
  float largest[HALVES], total[HALVES], sums[WIDTH][2 * HALVES];

  __device__ __forceinline__ CombinedPiece(float* parts, int count, int first) : total(), sums() {
#pragma unroll
    for (int half = 0; half < HALVES; half++) {
      largest[half] = minus_infinity();
#pragma unroll 8
      for (int part = 0; part < count; part++)
        largest[half] = fmaxf(largest[half], head_of(parts + part * PART, half).x);
    }
#pragma unroll(PARTS_AT_A_TIME)
    for (int part = 0; part < count; part++) {
      float weight[HALVES];
#pragma unroll
      for (int half = 0; half < HALVES; half++) {
        const float2 head = head_of(parts + part * PART, half);
        weight[half] = exp2f(head.x - largest[half]);
        total[half] = fmaf(weight[half], head.y, total[half]);
      }
#pragma unroll
      for (int i = 0; i < WIDTH; i++) {
        const Fragment fragment = fragment_of(parts + part * PART, first / 8 + i);
#pragma unroll
        for (int j = 0; j < 2 * HALVES; j++)
          sums[i][j] = fmaf(weight[j / 2], reinterpret_cast<const float*>(&fragment)[j], sums[i][j]);
      }
    }
  }

  // As part of a larger sum.
  __device__ __forceinline__ void store_part(float* part, int first) const {
#pragma unroll
    for (int i = 0; i < WIDTH; i++) {
      Fragment fragment;
#pragma unroll
      for (int j = 0; j < 2 * HALVES; j++) reinterpret_cast<float*>(&fragment)[j] = sums[i][j];
      fragment_of(part, first / 8 + i) = fragment;
    }
#pragma unroll
    for (int half = 0; half < HALVES; half++)
      if (first == 0 && threadIdx.x % 4 == 0) head_of(part, half) = make_float2(largest[half], total[half]);
  }

  // y = sums / total, rounded once: of `heads` rows of D features.
  __device__ __forceinline__ void store_y(act_t* y, int heads, int first) const {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int j = 0; j < 2 * HALVES; j++) {
      const int head = g + j / 2 * 8;
      if (head >= heads) continue;
      u32 words[WIDTH / 2];
#pragma unroll
      for (int i = 0; i < WIDTH; i += 2)
        words[i / 2] = as_u32(Number<DTYPE>::pair(sums[i][j] / total[j / 2], sums[i + 1][j] / total[j / 2]));
      store_words(y + head * D + first + (2 * t + j % 2) * WIDTH, words);
    }
  }
};

// Where combined pieces go: rows of y, or a part of a larger sum.
struct ToY {
  act_t* y;
  int heads;
  template <class Piece>
  __device__ __forceinline__ void take(const Piece& piece, int first) const {
    piece.store_y(y, heads, first);
  }
};
struct ToPart {
  float* part;
  template <class Piece>
  __device__ __forceinline__ void take(const Piece& piece, int first) const {
    piece.store_part(part, first);
  }
};

// Adds `count` parts and gives the sum to `sink`, in the pieces of Attention::attend; the warps of a block share them.
template <class Sink>
DEVICE void combine_parts(float* parts, int count, const Sink& sink) {
  constexpr int WARPS = THREADS / 32, WHOLE = D / 64;
  const int warp = threadIdx.x / 32;
#pragma unroll 1
  for (int i = warp; i < WHOLE; i += WARPS) sink.take(CombinedPiece<8>(parts, count, 64 * i), 64 * i);
  if constexpr (D % 64 >= 32)
    if (warp == WHOLE % WARPS) sink.take(CombinedPiece<4>(parts, count, WHOLE * 64), WHOLE * 64);
  if constexpr (D % 32 != 0)
    if (warp == (WHOLE + 1) % WARPS) sink.take(CombinedPiece<2>(parts, count, D / 32 * 32), D / 32 * 32);
}
