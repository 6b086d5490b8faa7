// The first include of every kernel: CUDA's headers, and the macros that let g++ compile the same source. Under
// CUTPQ_HOST the CPU runtime of tests/simt has already declared its own subset of CUDA C++.
#pragma once
#ifndef CUTPQ_HOST
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

constexpr u32 FULL_WARP = 0xffffffffu;

#ifdef CUTPQ_HOST
#define DEVICE static inline
// The last parameter of a wrapper on the CPU: the caller's source line, for error messages.
#define CALL_SITE , SIMT_LINE
#define UNCHECKED SIMT_UNCHECKED  // the portable body reports its accesses to the race detector itself
#else
#define DEVICE static __device__ __forceinline__
#define CALL_SITE
#define UNCHECKED
#endif

// All shared memory is dynamic and taken through Carver, so that the CPU runtime can put red zones between arrays.
#ifdef CUTPQ_HOST
#define DYNAMIC_SHARED(name) unsigned char* name = simt::shared_memory()
#else
#define DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]
#endif

// Takes typed arrays out of shared memory, one after the other.
struct Carver {
  unsigned char* base;
  u32 offset;
  __device__ explicit Carver(unsigned char* smem) : base(smem), offset(0) {}

  template <class T>
  __device__ __forceinline__ T* take(u32 count, u32 align = 16 CALL_SITE) {
    offset = (offset + align - 1) / align * align;
#ifdef CUTPQ_HOST
    T* array = reinterpret_cast<T*>(base + simt::carve(offset, count * sizeof(T), align, line));
#else
    T* array = reinterpret_cast<T*>(base + offset);
#endif
    offset += count * sizeof(T);
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
#ifndef CUTPQ_HOST
  __builtin_assume(__isGlobal(p));
#endif
  return p;
}
