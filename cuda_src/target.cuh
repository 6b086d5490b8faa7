// The first include of every kernel: CUDA's 16-bit types, short names, and how shared memory is shared out.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "ptx/red_zone.cuh"

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

constexpr u32 FULL_WARP = 0xffffffffu;

#define DEVICE static __device__ __forceinline__

// All shared memory is dynamic and taken through Carver, so that the race detector can put red zones between arrays.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]

// Takes typed arrays out of shared memory, one after the other.
struct Carver {
  unsigned char* base;
  u32 offset;
  __device__ explicit Carver(unsigned char* smem) : base(smem), offset(0) {}

  template <class T>
  __device__ __forceinline__ T* take(u32 count, u32 align = 16) {
    offset = (offset + align - 1) / align * align;
    T* array = reinterpret_cast<T*>(base + offset);
    offset += count * sizeof(T);
#ifdef SOFTGPU_RED_ZONE
    // The software device reports who touches the bytes behind an array (softgpu/races).
    forbid_shared(base + offset, SOFTGPU_RED_ZONE);
    offset += SOFTGPU_RED_ZONE;
#endif
    return array;
  }
};

// The 32 bits of a pair of 16-bit numbers, and back.
template <class Pair>
DEVICE u32 as_u32(Pair pair) {
  static_assert(sizeof(Pair) == 4, "a pair has 32 bits");
  return *reinterpret_cast<u32*>(&pair);
}
template <class Pair>
DEVICE Pair as_pair(u32 bits) {
  static_assert(sizeof(Pair) == 4, "a pair has 32 bits");
  return *reinterpret_cast<Pair*>(&bits);
}

// p, which the compiler may now take for an address in global memory. It cannot know this of pointers that a kernel
// loads, and would use the slower generic loads and stores for them.
template <class T>
DEVICE T* in_global(T* p) {
  __builtin_assume(__isGlobal(p));
  return p;
}
