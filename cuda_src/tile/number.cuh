// The number type that a configuration chooses by DTYPE, and conversions to it, each rounded once.
#pragma once
#include "../target.cuh"

constexpr int FLOAT16 = 0, BFLOAT16 = 1, FLOAT32 = 2;  // values of DTYPE in cutpq/kernels/config.py

DEVICE float to_float(half v) { return __half2float(v); }
DEVICE float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }
DEVICE float to_float(float v) { return v; }

template <int DTYPE>
struct Number;

template <>
struct Number<FLOAT16> {
  using One = half;
  using Pair = half2;
  static __device__ __forceinline__ One one(float v) { return __float2half_rn(v); }
  static __device__ __forceinline__ Pair pair(float x, float y) { return __floats2half2_rn(x, y); }
};

template <>
struct Number<BFLOAT16> {
  using One = __nv_bfloat16;
  using Pair = __nv_bfloat162;
  static __device__ __forceinline__ One one(float v) { return __float2bfloat16_rn(v); }
  static __device__ __forceinline__ Pair pair(float x, float y) { return __floats2bfloat162_rn(x, y); }
};

template <>
struct Number<FLOAT32> {
  using One = float;
  static __device__ __forceinline__ One one(float v) { return v; }
};
