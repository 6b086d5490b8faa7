// Bitwise functions and byte permutations of 32-bit words.
#pragma once
#include "../target.cuh"

// lop3.b32: any bitwise function f of three words, given by the table LUT = f(0xf0, 0xcc, 0xaa).
template <int LUT>
DEVICE u32 lop3(u32 a, u32 b, u32 c) {
  u32 d;
  asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(d) : "r"(a), "r"(b), "r"(c), "n"(LUT));
  return d;
}

constexpr int AND_OR = (0xf0 & 0xcc) | 0xaa;  // (a & b) | c

// prmt.b32: byte i of the result is byte selector[4i..4i+2] of the eight bytes b:a; where bit 4i+3 is set, its sign bit
// fills the byte instead.
DEVICE u32 prmt(u32 a, u32 b, u32 selector) {
  u32 d;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(selector));
  return d;
}
