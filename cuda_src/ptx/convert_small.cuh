// Conversions to floating point of 8 bits (sm_89) and of 4 (sm_100a).
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

#ifdef __CUDA_ARCH_FEAT_SM100_ALL
constexpr bool HAS_FP4 = true;

// cvt.rn.satfinite.e2m1x2.f32, four times: byte i is high[i] and low[i] as E2M1, rounded to nearest, ties to even, and
// beyond 6 to 6.
DEVICE u32 e2m1_bytes(const float (&high)[4], const float (&low)[4]) {
  u32 bytes;
  asm("{\n"
      ".reg .b8 a, b, c, d;\n"
      "cvt.rn.satfinite.e2m1x2.f32 a, %1, %5;\n"
      "cvt.rn.satfinite.e2m1x2.f32 b, %2, %6;\n"
      "cvt.rn.satfinite.e2m1x2.f32 c, %3, %7;\n"
      "cvt.rn.satfinite.e2m1x2.f32 d, %4, %8;\n"
      "mov.b32 %0, {a, b, c, d};\n"
      "}"
      : "=r"(bytes)
      : "f"(high[0]), "f"(high[1]), "f"(high[2]), "f"(high[3]), "f"(low[0]), "f"(low[1]), "f"(low[2]), "f"(low[3]));
  return bytes;
}
#else
constexpr bool HAS_FP4 = false;
DEVICE u32 e2m1_bytes(const float (&)[4], const float (&)[4]) { return 0; }
#endif
