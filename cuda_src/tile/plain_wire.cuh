// Numbers that travel as they are: the same steps as tile/block_wire.cuh, without a codec.
#pragma once
#include "eight.cuh"

struct PlainWire {
  static constexpr int GRANULE = 8;
  static constexpr int SCRATCH = 0;

  static __device__ __forceinline__ size_t bytes(int granules) { return size_t(granules) * 8 * sizeof(act_t); }

  static __device__ __forceinline__ void put(u8* wire, int granules, int tile, const float* v, u16*) {
    const int group = tile * THREADS + threadIdx.x;
    const size_t end = size_t(granules) * 8;
    if (group < granules) store_eight(reinterpret_cast<act_t*>(wire), size_t(group) * 8, end, v);
  }

  struct Raw {
    uint4 words[8 / NUMBERS_OF_WORD];
  };

  static __device__ __forceinline__ bool is_aligned(const u8*) { return true; }

  template <bool ALIGNED>
  static __device__ __forceinline__ Raw load(const u8* wire, int, int group) {
    Raw raw;
#pragma unroll
    for (int w = 0; w < 8 / NUMBERS_OF_WORD; w++)
      raw.words[w] = reinterpret_cast<const uint4*>(wire + size_t(group) * 8 * sizeof(act_t))[w];
    return raw;
  }

  static __device__ __forceinline__ void unpack(float* v, Raw raw) {
    const act_t* numbers = reinterpret_cast<const act_t*>(&raw);
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = to_float(numbers[i]);
  }
};
