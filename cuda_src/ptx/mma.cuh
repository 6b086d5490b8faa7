// mma: tensor cores compute D (16 x 8, float32) += A (16 x 16) @ B (16 x 8). All lanes of a warp execute it together.
// With g = lane / 4 and c = 2 (lane % 4), a lane's fragments hold pairs of neighbours along k, the first in the low
// half:
//   a[i]  row g + 8 (i & 1), k = c + 8 (i >> 1)        b[i]  k = c + 8 i, column g
//   d[i]  row g + 8 (i >> 1), column c + (i & 1)
#pragma once
#include "../target.cuh"

// mma.m16n8k16 of float16.
DEVICE void mma_m16n8k16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], half) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// mma.m16n8k16 of bfloat16.
DEVICE void mma_m16n8k16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], __nv_bfloat16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
