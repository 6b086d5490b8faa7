// The wire of an uncompressed all-reduce: numbers themselves, with the interface of tile/block_wire.cuh.
#pragma once
#include "eight.cuh"

struct PlainWire {
  static constexpr int GRANULE = 8;
  static constexpr int TEAMS = 1;
  static constexpr int SCRATCH = 0;

  using Numbers = float[8];

  static __device__ __forceinline__ size_t bytes(int granules) { return size_t(granules) * 8 * sizeof(act_t); }

  static __device__ __forceinline__ void put(u8* wire, int granules, int tile, const float* v, u16*) {
    const u32 group = tile * THREADS + threadIdx.x;
    if (group < u32(granules)) store_eight(reinterpret_cast<act_t*>(wire), group * 8, granules * 8, v);
  }

  struct Raw {
    uint4 words[8 / NUMBERS_OF_WORD];
  };

  static __device__ __forceinline__ bool is_aligned(const u8*) { return true; }

  template <bool ALIGNED>
  static __device__ __forceinline__ Raw load(const u8* wire, int, u32 group) {
    Raw raw;
#pragma unroll
    for (int w = 0; w < 8 / NUMBERS_OF_WORD; w++)
      raw.words[w] = reinterpret_cast<const uint4*>(wire + size_t(group) * 8 * sizeof(act_t))[w];
    return raw;
  }

  template <int COUNT>
  static __device__ __forceinline__ void add_up(float* sum, const Raw (&terms)[COUNT]) {
#pragma unroll
    for (int t = 0; t < COUNT; t++) {
      const act_t* numbers = reinterpret_cast<const act_t*>(&terms[t]);
#pragma unroll
      for (int i = 0; i < 8; i++) sum[i] = t == 0 ? to_float(numbers[i]) : __fadd_rn(sum[i], to_float(numbers[i]));
    }
  }
};
