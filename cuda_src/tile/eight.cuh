// Loads and stores a thread's eight consecutive numbers as 16-byte words, and one by one at the ragged end of an array.
// Arrays have at most 2^30 numbers, so that 32-bit indices suffice.
#pragma once
#include "number.cuh"

using act_t = Number<DTYPE>::One;

constexpr int NUMBERS_OF_WORD = 16 / sizeof(act_t);

// v = x[first ... first + 7] in float32, zero from index n on. x is aligned to 16 bytes, first a multiple of 8.
DEVICE void load_eight(float* v, const act_t* x, u32 first, u32 n) {
  if (first + 8 <= n) {
#pragma unroll
    for (int w = 0; w < 8 / NUMBERS_OF_WORD; w++) {
      const uint4 word = reinterpret_cast<const uint4*>(x + first)[w];
      const act_t* numbers = reinterpret_cast<const act_t*>(&word);
#pragma unroll
      for (int i = 0; i < NUMBERS_OF_WORD; i++) v[w * NUMBERS_OF_WORD + i] = to_float(numbers[i]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = first + i < n ? to_float(x[first + i]) : 0.0f;
  }
}

// y[first ... first + 7] = v, rounded once; nothing is written from index n on.
DEVICE void store_eight(act_t* y, u32 first, u32 n, const float* v) {
  if (first + 8 <= n) {
#pragma unroll
    for (int w = 0; w < 8 / NUMBERS_OF_WORD; w++) {
      uint4 word;
      act_t* numbers = reinterpret_cast<act_t*>(&word);
#pragma unroll
      for (int i = 0; i < NUMBERS_OF_WORD; i++) numbers[i] = Number<DTYPE>::one(v[w * NUMBERS_OF_WORD + i]);
      reinterpret_cast<uint4*>(y + first)[w] = word;
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; i++)
      if (first + i < n) y[first + i] = Number<DTYPE>::one(v[i]);
  }
}
