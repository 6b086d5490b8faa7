// Conversions to 8-bit floating point (sm_89).
#pragma once
#include "../target.cuh"

#if __CUDA_ARCH__ >= 890
constexpr bool HAS_FP8 = true;

// cvt.rn.satfinite.e4m3x2.f32: two float32 as E4M3, the first in the lower byte; nearest, ties to even, and beyond 448 the
// largest number of that sign. NaN gives the code of NaN.
DEVICE u32 e4m3_pair(float first, float second) {
  u16 codes;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(second), "f"(first));
  return codes;
}
#else
constexpr bool HAS_FP8 = false;
DEVICE u32 e4m3_pair(float, float) { return 0; }  // never called, but named
#endif
