// Attention of up to HEADS queries to a tile of 16 keys: scores, softmax as far as it is known, sum of values. Keys and
// values go from global memory straight into mma fragments, since every number is used once.
//
// mma adds products over k in any order, if only both operands agree on it. So a lane loads 8 consecutive features of a key
// in one 16-byte word, and its four pairs serve as fragments B of two mma steps; fragments A of the queries are permuted
// alike. The sum of values runs over keys: a lane loads the same features of two keys, and prmt makes pairs of keys.
#pragma once
#include "../ptx/bits.cuh"
#include "../ptx/mma.cuh"
#include "number.cuh"

using act_t = Number<DTYPE>::One;

constexpr int TILE_KEYS = 16;
constexpr int HALVES = HEADS / 8;  // heads of a lane's fragments A and D: g = lane / 4, and g + 8 where HEADS is 16

DEVICE float minus_infinity() { return __uint_as_float(0xff800000u); }

// WORDS neighbouring words of 32 bits, in one load or store.
template <int WORDS>
DEVICE void load_words(u32 (&words)[WORDS], const void* p) {
  if constexpr (WORDS == 4) {
    const uint4 v = *reinterpret_cast<const uint4*>(p);
    words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
  } else if constexpr (WORDS == 2) {
    const uint2 v = *reinterpret_cast<const uint2*>(p);
    words[0] = v.x, words[1] = v.y;
  } else {
    words[0] = *reinterpret_cast<const u32*>(p);
  }
}

template <int WORDS>
DEVICE void store_words(void* p, const u32 (&words)[WORDS]) {
  if constexpr (WORDS == 4) *reinterpret_cast<uint4*>(p) = make_uint4(words[0], words[1], words[2], words[3]);
  else if constexpr (WORDS == 2) *reinterpret_cast<uint2*>(p) = make_uint2(words[0], words[1]);
  else *reinterpret_cast<u32*>(p) = words[0];
}

// Queries in shared memory as fragments A: pieces of 32 features, and one of 16 where D leaves it. A piece is, for each
// half of the heads and each lane, the words of the features that the lane loads of a key.
struct Queries {
  u32* words;

  static constexpr int WORDS = HEADS * D / 2;

  // Copies `heads` queries, one row of D features each; further ones up to HEADS are zero.
  __device__ __forceinline__ void stage(const act_t* q, int heads) const {
    for (int i = threadIdx.x; i < WORDS / 2; i += THREADS) {  // four features, two words
      const int head = i / (D / 4), feature = i % (D / 4) * 4, piece = feature / 32, width = piece < D / 32 ? 4 : 2;
      uint2 four = {0, 0};
      if (head < heads) four = *reinterpret_cast<const uint2*>(q + head * D + feature);
      const int lane = head % 8 * 4 + feature % 32 / (2 * width), at = feature % (2 * width) / 2;
      *reinterpret_cast<uint2*>(words + piece * 16 * HEADS + (head / 8 * 32 + lane) * width + at) = four;
    }
  }

  // a = fragment A of one step in a piece of `WIDTH` words a lane.
  template <int WIDTH>
  __device__ __forceinline__ void fragments(u32 (&a)[WIDTH / 2][4], int piece) const {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      u32 v[WIDTH] = {};
      if (half < HALVES) load_words(v, words + piece * 16 * HEADS + (half * 32 + threadIdx.x % 32) * WIDTH);
#pragma unroll
      for (int step = 0; step < WIDTH / 2; step++) a[step][half] = v[2 * step], a[step][2 + half] = v[2 * step + 1];
    }
  }
};

// Scores of a tile: fragments D, whose columns are eight keys each.
using Scores = float[2][4];

// scores += queries @ keys^T over one piece. key[n] is the first feature of this piece that the lane loads of its key.
template <int WIDTH>
DEVICE void add_scores(Scores& scores, const Queries& queries, int piece, const act_t* const (&key)[2], int offset) {
  u32 a[WIDTH / 2][4];
  queries.fragments<WIDTH>(a, piece);
#pragma unroll
  for (int n = 0; n < 2; n++) {
    u32 k[WIDTH];
    load_words(k, key[n] + offset);
#pragma unroll
    for (int step = 0; step < WIDTH / 2; step++) {
      const u32 b[2] = {k[2 * step], k[2 * step + 1]};
      mma_m16n8k16(scores[n], a[step], b, act_t());
    }
  }
}

// What a warp knows of its queries after some tiles. Scores are times log2(e), so that exp2 does for exp.
struct Attention {
  float largest[HALVES];  // score of a head
  float total[HALVES];    // sum of exp2(score - largest) over this lane's keys
  float sums[D / 8][4];   // sum of exp2(score - largest) * value: fragments D

  __device__ __forceinline__ Attention() : total(), sums() {
#pragma unroll
    for (int h = 0; h < HALVES; h++) largest[h] = minus_infinity();
  }

  // Attends to the tile of keys first_key ... first_key + 15, of which those in [begin, end) are seen: at least one. keys
  // and values are the rows of this pair; rows outside of what is seen are not read.
  __device__ __forceinline__ void attend(const Queries& queries, const act_t* keys, const act_t* values, int first_key,
                                         int begin, int end, float scale) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const act_t *key[2], *value[4];
#pragma unroll
    for (int n = 0; n < 2; n++) key[n] = keys + size_t(seen(first_key + 8 * n + g, begin, end)) * D;
#pragma unroll
    for (int r = 0; r < 4; r++)
      value[r] = values + size_t(seen(first_key + 8 * (r / 2) + 2 * t + r % 2, begin, end)) * D;

    Scores scores = {};
#pragma unroll
    for (int piece = 0; piece < D / 32; piece++) add_scores<4>(scores, queries, piece, key, 32 * piece + 8 * t);
    if constexpr (D % 32 != 0) add_scores<2>(scores, queries, D / 32, key, D / 32 * 32 + 4 * t);

    u32 p[4] = {};  // fragment A of the probabilities, as they are so far
#pragma unroll
    for (int h = 0; h < HALVES; h++) update(scores, p, h, first_key + 2 * t, begin, end, scale);
#pragma unroll
    for (int i = 0; i < D / 64; i++) add_values<8>(p, value, 64 * i, g);
    if constexpr (D % 64 >= 32) add_values<4>(p, value, D / 64 * 64, g);
    if constexpr (D % 32 != 0) add_values<2>(p, value, D / 32 * 32, g);
  }

  // The sum of a head over all lanes that have keys of it.
  __device__ __forceinline__ float total_of(int h) const {
    float sum = total[h] + __shfl_xor_sync(FULL_WARP, total[h], 1);
    return sum + __shfl_xor_sync(FULL_WARP, sum, 2);
  }

 private:
  static __device__ __forceinline__ int seen(int key, int begin, int end) { return min(max(key, begin), end - 1); }

  // Takes the tile's scores of a half of the heads into account: p = exp2(score - largest), rounded to act_t.
  __device__ __forceinline__ void update(Scores& scores, u32 (&p)[4], int h, int first_key, int begin, int end,
                                         float scale) {
    float top = largest[h];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float& s = scores[i / 2][2 * h + i % 2];
      const int key = first_key + i / 2 * 8 + i % 2;
      s = begin <= key && key < end ? s * scale : minus_infinity();
      top = fmaxf(top, s);
    }
    top = fmaxf(top, __shfl_xor_sync(FULL_WARP, top, 1));
    top = fmaxf(top, __shfl_xor_sync(FULL_WARP, top, 2));
    const float factor = exp2f(largest[h] - top);
    largest[h] = top;
    total[h] *= factor;
#pragma unroll
    for (int e = 0; e < D / 8; e++) sums[e][2 * h] *= factor, sums[e][2 * h + 1] *= factor;
#pragma unroll
    for (int n = 0; n < 2; n++) {
      const float left = exp2f(scores[n][2 * h] - top), right = exp2f(scores[n][2 * h + 1] - top);
      total[h] += left + right;
      p[2 * n + h] = as_u32(Number<DTYPE>::pair(left, right));
    }
  }

  // sums += p @ values for 8 * WIDTH features from `first` on, of which a lane loads first + WIDTH * g and following.
  // value[r] is the row of the lane's r-th key.
  template <int WIDTH>
  __device__ __forceinline__ void add_values(const u32 (&p)[4], const act_t* const (&value)[4], int first, int g) {
    u32 v[4][WIDTH / 2];
#pragma unroll
    for (int r = 0; r < 4; r++) load_words(v[r], value[r] + first + WIDTH * g);
#pragma unroll
    for (int i = 0; i < WIDTH; i++) {
      const u32 pick = i % 2 ? 0x7632 : 0x5410;  // the high halves of two words, or the low ones
      const u32 b[2] = {prmt(v[0][i / 2], v[1][i / 2], pick), prmt(v[2][i / 2], v[3][i / 2], pick)};
      mma_m16n8k16(sums[first / 8 + i], p, b, act_t());
    }
  }
};
