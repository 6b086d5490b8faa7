// The slice of CUDA C++ that the kernels use, for g++. Included in front of every kernel that is built for the CPU.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
template <class T, int N>
struct vector_type;
template <class T>
struct alignas(sizeof(T) * 2) vector_type<T, 2> {
  T x, y;
};
template <class T>
struct alignas(sizeof(T) * 4) vector_type<T, 4> {
  T x, y, z, w;
};
using uint2 = vector_type<uint32_t, 2>;
using uint4 = vector_type<uint32_t, 4>;
using float2 = vector_type<float, 2>;
using float4 = vector_type<float, 4>;
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

// ---- the runtime, as kernels and PTX wrappers see it. Every `line` is the kernel's own.
namespace simt {

// Constant for a lane, whose code only ever runs on its own fiber: so the compiler may merge the calls.
__attribute__((const)) dim3 thread_index(), block_index(), block_shape(), grid_shape();
__attribute__((const)) int lane_index();

using Body = void (*)(void** operands_of_lanes, uint32_t mask);
void collective(uint32_t mask, const char* op, void* operands, Body body, int line);
void barrier(int id, int count, bool wait, int line);
void syncwarp(uint32_t mask, int line);
uint64_t shuffle(uint32_t mask, const char* op, uint64_t value, int source, int line);
void spin();  // let other lanes run
void fence();
enum Scope { DEVICE_SCOPE, SYSTEM_SCOPE };
uint32_t atomic_load(const uint32_t* p, bool acquire, int line, Scope scope = DEVICE_SCOPE);
enum AtomicKind { STORE_RELAXED, STORE_RELEASE, MODIFY_RELAXED, MODIFY_ACQ_REL };
// Checks and orders; the caller then does it.
void before_atomic(void* p, int bytes, AtomicKind kind, int line, Scope scope = DEVICE_SCOPE);
uint64_t device_timer();  // in nanoseconds

unsigned char* shared_memory();
uint32_t carve(uint32_t device_offset, uint32_t bytes, uint32_t align, int line);  // -> offset with red zones
uint32_t shared_address(const void* p);
void check_range(const void* p, int bytes, bool write, int line);
void cp_async(uint32_t dst, const void* src, int bytes, int src_bytes, int line);
void cp_async_commit();
void cp_async_wait(int newest);

struct LdmatrixOperands {
  uint32_t* result;
  uint32_t address;
  bool transposed;
  int line;
};
struct MmaOperands {
  float* d;
  const uint32_t *a, *b;
};
void ldmatrix_x4(void**, uint32_t);
void mma_m16n8k16_f16(void**, uint32_t), mma_m16n8k16_bf16(void**, uint32_t);

// ---- a kernel's signature, taken from its type
using Thunk = void (*)(void** args);
struct Parameter {
  int bytes, kind;
};
enum ParameterKind { SCALAR, POINTER_TO_CONST, POINTER };
void export_kernel(const char* name, Thunk kernel, int count, const Parameter* parameters);

template <class T>
constexpr Parameter parameter() {
  if (!std::is_pointer_v<T>) return {sizeof(T), SCALAR};
  return {sizeof(T), std::is_const_v<std::remove_pointer_t<T>> ? POINTER_TO_CONST : POINTER};
}
template <class... A, size_t... I>
__attribute__((noinline, no_sanitize("thread"))) void call(void (*f)(A...), void** args,
                                                           std::index_sequence<I...>) {
  f(*static_cast<A*>(args[I])...);
}
template <auto F>
struct Exported;
template <class... A, void (*F)(A...)>
struct Exported<F> {
  explicit Exported(const char* name) {
    static const Parameter parameters[] = {parameter<A>()..., {}};
    const Thunk thunk = [](void** args) { call(F, args, std::index_sequence_for<A...>{}); };
    export_kernel(name, thunk, sizeof...(A), parameters);
  }
};

}  // namespace simt

#define SIMT_EXPORT(kernel) static simt::Exported<kernel> simt_export_##kernel(SIMT_TAG #kernel);
#define SIMT_LINE int line = __builtin_LINE()
#define SIMT_UNCHECKED __attribute__((no_sanitize("thread")))
#define threadIdx (simt::thread_index())
#define blockIdx (simt::block_index())
#define blockDim (simt::block_shape())
#define gridDim (simt::grid_shape())

// ---- half: every operation rounds once (+, -, * in float are exact or innocuous; fma in double)
struct half {
  _Float16 v;
  half() = default;
  half(float f) : v(f) {}
  operator float() const { return v; }
  static half from_bits(uint16_t bits) {
    half h;
    memcpy(&h, &bits, 2);
    return h;
  }
};
struct alignas(4) half2 {
  half x, y;
};

// ---- bfloat16: round to nearest even from float; the float operations in between are exact for +, -, * of 8 bits
struct __nv_bfloat16 {
  uint16_t v;
  __nv_bfloat16() = default;
  __nv_bfloat16(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    v = f != f ? 0x7fff : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
  operator float() const {
    const uint32_t bits = uint32_t(v) << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
  }
  static __nv_bfloat16 from_bits(uint16_t bits) {
    __nv_bfloat16 b;
    b.v = bits;
    return b;
  }
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

namespace simt {
inline uint16_t low_bits(double d) {
  uint64_t u;
  memcpy(&u, &d, 8);
  return uint16_t(u & 0xffff);
}

// a * b + c rounded once to T: in double, made odd where double itself had to round, so that rounding again is safe.
template <class T>
T fma_once(T a, T b, T c) {
  const double product = double(float(a)) * double(float(b)),
               addend = double(float(c));  // the product is exact
  double sum = product + addend;
  const double rest =
      std::fabs(product) > std::fabs(addend) ? addend - (sum - product) : product - (sum - addend);
  if (rest != 0 && std::isfinite(sum) && !(low_bits(sum) & 1))
    sum = std::nextafter(sum, rest > 0 ? INFINITY : -INFINITY);
  float f = float(sum);  // once more: odd in float, where a bfloat16 or half is rounded from
  uint32_t bits;
  memcpy(&bits, &f, 4);
  if (double(f) != sum && std::isfinite(f) && !(bits & 1))
    f = std::nextafter(f, sum > double(f) ? INFINITY : -INFINITY);
  return T(f);
}
}  // namespace simt

#define SIMT_PAIR_OPERATIONS(ONE, TWO)                                              \
  inline ONE __hadd(ONE a, ONE b) { return ONE(float(a) + float(b)); }              \
  inline ONE __hsub(ONE a, ONE b) { return ONE(float(a) - float(b)); }              \
  inline ONE __hmul(ONE a, ONE b) { return ONE(float(a) * float(b)); }              \
  inline ONE __hfma(ONE a, ONE b, ONE c) { return simt::fma_once(a, b, c); }        \
  inline TWO __hadd2(TWO a, TWO b) { return {__hadd(a.x, b.x), __hadd(a.y, b.y)}; } \
  inline TWO __hsub2(TWO a, TWO b) { return {__hsub(a.x, b.x), __hsub(a.y, b.y)}; } \
  inline TWO __hmul2(TWO a, TWO b) { return {__hmul(a.x, b.x), __hmul(a.y, b.y)}; } \
  inline TWO __hfma2(TWO a, TWO b, TWO c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; }
SIMT_PAIR_OPERATIONS(half, half2)
SIMT_PAIR_OPERATIONS(__nv_bfloat16, __nv_bfloat162)
inline half __float2half_rn(float f) { return half(f); }
inline float __half2float(half h) { return h; }
inline half2 __half2half2(half h) { return {h, h}; }
inline half2 __halves2half2(half a, half b) { return {a, b}; }
inline half2 __floats2half2_rn(float a, float b) { return {half(a), half(b)}; }
inline float2 __half22float2(half2 h) { return {float(h.x), float(h.y)}; }
inline half2 __habs2(half2 h) { return {std::fabs(float(h.x)), std::fabs(float(h.y))}; }
inline half __hmin(half a, half b) { return std::fmin(float(a), float(b)); }  // a number rather than NaN
inline half2 __hmin2(half2 a, half2 b) { return {__hmin(a.x, b.x), __hmin(a.y, b.y)}; }
inline half __hmax(half a, half b) { return std::fmax(float(a), float(b)); }
inline half2 __hmax2(half2 a, half2 b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; }
inline half __hmax_nan(half a, half b) {
  return float(a) != float(a) || float(b) != float(b) ? half::from_bits(0x7fff) : __hmax(a, b);
}
inline half2 __hmax2_nan(half2 a, half2 b) { return {__hmax_nan(a.x, b.x), __hmax_nan(a.y, b.y)}; }
inline half2 __hneg2(half2 h) { return {-float(h.x), -float(h.y)}; }
inline uint32_t __hgt2_mask(half2 a, half2 b) {
  return (float(a.x) > float(b.x) ? 0xffff : 0) | (float(a.y) > float(b.y) ? 0xffff0000 : 0);
}
inline __nv_bfloat16 __float2bfloat16_rn(float f) { return __nv_bfloat16(f); }
inline float __bfloat162float(__nv_bfloat16 b) { return b; }
inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 b) { return {b, b}; }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 a, __nv_bfloat16 b) { return {a, b}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b) { return {__nv_bfloat16(a), __nv_bfloat16(b)}; }

inline uint32_t __float_as_uint(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  return bits;
}
inline float __uint_as_float(uint32_t bits) {
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
// -ffp-contract=off: each of them rounds
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline float __expf(float x) {
  return std::exp(x);
}  // the device's is less exact, by a few units in the last place
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline uint32_t min(uint32_t a, uint32_t b) { return a < b ? a : b; }
inline uint32_t max(uint32_t a, uint32_t b) { return a > b ? a : b; }

// ---- barriers, shuffles, atomics
inline void __syncthreads(SIMT_LINE) { simt::barrier(0, 0, true, line); }
inline void __syncwarp(uint32_t mask = ~0u, SIMT_LINE) { simt::syncwarp(mask, line); }
inline void __threadfence() { simt::fence(); }
inline void __threadfence_system() { simt::fence(); }
inline void __nanosleep(unsigned) { simt::spin(); }

namespace simt {
template <class T>
T shuffle_value(uint32_t mask, const char* op, T value, int source, int line) {
  uint64_t raw = 0;
  memcpy(&raw, &value, sizeof value);
  raw = shuffle(mask, op, raw, source, line);
  memcpy(&value, &raw, sizeof value);
  return value;
}
// All lanes are on one thread of the system, so an atomic needs no help from the processor.
template <class T, class F>
SIMT_UNCHECKED T modify(T* p, F f, AtomicKind kind, int line) {
  before_atomic(p, sizeof(T), kind, line);
  const T old = *p;
  *p = f(old);
  return old;
}
}  // namespace simt

template <class T>
T __shfl_sync(uint32_t mask, T v, int source, SIMT_LINE) {
  return simt::shuffle_value(mask, "shfl.idx", v, source & 31, line);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T v, int x, SIMT_LINE) {
  return simt::shuffle_value(mask, "shfl.bfly", v, (simt::lane_index() ^ x) & 31, line);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T v, int d, SIMT_LINE) {
  const int source = simt::lane_index() + d;
  return simt::shuffle_value(mask, "shfl.down", v, source < 32 ? source : simt::lane_index(), line);
}
template <class T>
T atomicAdd(T* p, std::common_type_t<T> v, SIMT_LINE) {
  return simt::modify(p, [&](T old) -> T { return old + v; }, simt::MODIFY_RELAXED, line);
}
