// ldmatrix: matrices of 8 x 8 16-bit numbers from shared memory into mma fragments. All lanes of a warp execute it
// together. Lane i gives the address of row i % 8 of matrix i / 8 and receives columns 2 (i % 4) and 2 (i % 4) + 1 of
// row i / 4 of each matrix.
#pragma once
#include "shared_address.cuh"

// ldmatrix.x4: loads four matrices.
DEVICE void ldmatrix_x4(u32 (&result)[4], u32 row_address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(result[0]), "=r"(result[1]), "=r"(result[2]), "=r"(result[3])
               : "r"(row_address)
               : "memory");
}
