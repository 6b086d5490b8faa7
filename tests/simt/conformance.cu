// One kernel for each instruction of cuda_src/ptx: a warp feeds it random operands and writes what every lane gets.
// conformance.py records the results of a GPU, and the tests compare those of the executor with them.
#include "ptx/bits.cuh"
#include "ptx/convert_small.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/memory_order.cuh"
#include "ptx/mma.cuh"
#include "ptx/timer.cuh"

// All of them: in (32, 8) random, out (32, 8) zero.
#define CONFORMANCE(name) extern "C" __global__ void name(const u32* in, u32* out)

CONFORMANCE(lop3_and_or) {
  const u32* v = in + threadIdx.x * 8;
  out[threadIdx.x * 8] = lop3<AND_OR>(v[0], v[1], v[2]);
  out[threadIdx.x * 8 + 1] = lop3<0x96>(v[0], v[1], v[2]);
  out[threadIdx.x * 8 + 2] = lop3<0x1b>(v[0], v[1], v[2]);
}

CONFORMANCE(prmt_bytes) {
  const u32* v = in + threadIdx.x * 8;
  for (int i = 0; i < 6; i++) out[threadIdx.x * 8 + i] = prmt(v[0], v[1], v[2 + i]);
}

// 256 words in shared memory; lane i names the 16 bytes that word 0 of its operands picks.
DEVICE u32* stage_words(unsigned char* smem, const u32* in) {
  Carver carver(smem);
  u32* words = carver.take<u32>(256, 128);
  for (int i = 0; i < 8; i++) words[threadIdx.x * 8 + i] = in[threadIdx.x * 8 + i];
  __syncthreads();
  return words;
}

CONFORMANCE(ldmatrix_four) {
  DYNAMIC_SHARED(smem);
  const u32* words = stage_words(smem, in);
  u32 result[4];
  ldmatrix_x4(result, shared_address(words + in[threadIdx.x * 8] % 64 * 4));
  for (int i = 0; i < 4; i++) out[threadIdx.x * 8 + i] = result[i];
}

CONFORMANCE(cp_async_plain) {
  DYNAMIC_SHARED(smem);
  u32* words = stage_words(smem, in);
  cp_async_16(shared_address(words + threadIdx.x * 8), in + (threadIdx.x ^ 5) * 8, threadIdx.x % 3 != 0);
  cp_async_commit();
  cp_async_wait<0>();
  for (int i = 0; i < 8; i++) out[threadIdx.x * 8 + i] = words[threadIdx.x * 8 + i];
}

CONFORMANCE(cp_async_hint) {
  DYNAMIC_SHARED(smem);
  u32* words = stage_words(smem, in);
  const u64 policy = evict_first_policy();
  cp_async_16_hint(shared_address(words + threadIdx.x * 8), in + (threadIdx.x ^ 9) * 8, policy, threadIdx.x % 3 != 0);
  cp_async_commit();
  cp_async_wait<0>();
  for (int i = 0; i < 8; i++) out[threadIdx.x * 8 + i] = words[threadIdx.x * 8 + i];
}

DEVICE u32 as_bits(float f) {
  u32 bits;
  memcpy(&bits, &f, 4);
  return bits;
}

// Random bits become numbers of sizes between 2^-7 and 2: sums are finite and lose low bits, so that rounding shows.
template <class T>
DEVICE void multiply(const u32* in, u32* out, u32 keep, u32 set) {
  u32 a[4], b[2];
  float d[4];
  const u32* v = in + threadIdx.x * 8;
  for (int i = 0; i < 4; i++) a[i] = (v[i] & keep) | set;
  for (int i = 0; i < 2; i++) b[i] = (v[4 + i] & keep) | set;
  for (int i = 0; i < 4; i++) d[i] = float(int(v[6 + i / 2] >> (i % 2 * 16) & 0xffff) - 0x8000) / 4096.0f;
  mma_m16n8k16(d, a, b, T());
  for (int i = 0; i < 4; i++) out[threadIdx.x * 8 + i] = as_bits(d[i]);
}

CONFORMANCE(mma_float16) { multiply<half>(in, out, 0x9fff9fff, 0x20002000); }           // sizes 2^-7 .. 2
CONFORMANCE(mma_bfloat16) { multiply<__nv_bfloat16>(in, out, 0x83ff83ff, 0x3c003c00); }  // sizes 2^-7 .. 2

// Any bits as numbers, NaN and infinities among them, and the same bits as numbers between 2^-9 and 512.
DEVICE float any_number(const u32* in, int i) { return __uint_as_float(in[threadIdx.x * 8 + i]); }
DEVICE float near_one(const u32* in, int i) {
  const u32 bits = in[threadIdx.x * 8 + i];
  return __uint_as_float((bits & 0x807fffffu) | (118 + bits % 18) << 23);
}

CONFORMANCE(convert_e4m3) {
  for (int i = 0; i < 4; i++) out[threadIdx.x * 8 + i] = e4m3_pair(any_number(in, 2 * i), any_number(in, 2 * i + 1));
  for (int i = 0; i < 4; i++) out[threadIdx.x * 8 + 4 + i] = e4m3_pair(near_one(in, 2 * i), near_one(in, 2 * i + 1));
}

CONFORMANCE(convert_e2m1) {
  float high[4], low[4];
  for (int i = 0; i < 4; i++) high[i] = any_number(in, i), low[i] = any_number(in, 4 + i);
  out[threadIdx.x * 8] = e2m1_bytes(high, low);
  for (int i = 0; i < 4; i++) high[i] = near_one(in, i) / 32, low[i] = near_one(in, 4 + i) / 32;
  out[threadIdx.x * 8 + 1] = e2m1_bytes(high, low);
}

CONFORMANCE(counter) {
  if (threadIdx.x) return;
  out[0] = atomic_add_acq_rel(out + 2, in[2]);
  out[1] = atomic_add_acq_rel(out + 2, in[3]);
}

CONFORMANCE(system_flags) {
  if (threadIdx.x) return;
  st_release_sys(out, in[0]);
  out[1] = ld_acquire_sys(out);
  st_relaxed_sys(out + 2, in[1]);
  out[3] = ld_acquire_sys(out + 2);
  out[4] = ld_relaxed(out + 2);
}

CONFORMANCE(timer) {
  const u64 first = timer_ns();
  out[threadIdx.x] = timer_ns() >= first;
}
