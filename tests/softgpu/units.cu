// Small kernels, one for each promise of the executor. test_units.py runs them, and with lines exchanged.
#include "ptx/bits.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/memory_order.cuh"
#include "ptx/mma.cuh"
#include "named_barrier.cuh"
#include "weaker_order.cuh"

extern "C" __global__ void warp_ops(const u32* in,  // (32,)
                                    u32* out) {     // (3, 32): sum of the warp, a lop3, a prmt
  const u32 t = threadIdx.x, v = in[t];
  u32 sum = v;
  for (int d = 16; d; d /= 2) sum += __shfl_xor_sync(FULL_WARP, sum, d);
  const u32 later = __shfl_down_sync(FULL_WARP, v, 3);
  out[t] = sum;
  out[32 + t] = lop3<0x96>(v, later, 0x0ff00ff0);
  out[64 + t] = prmt(v, later, 0x9d40);
}

extern "C" __global__ void matrix_product(const uint4* a,  // (16, 16) bfloat16
                                          const uint4* b,  // (8, 16) bfloat16, the columns of B
                                          float* d) {      // (16, 8)
  DYNAMIC_SHARED(smem);
  Carver carver(smem);
  uint4* smem_a = carver.take<uint4>(32);
  uint4* smem_b = carver.take<uint4>(16);
  const int t = threadIdx.x;
  smem_a[t] = a[t];
  if (t < 16) smem_b[t] = b[t];
  __syncwarp();  // operands stored
  u32 frag_a[4], both[4];
  ldmatrix_x4(frag_a, shared_address(smem_a + (t & 15) * 2 + (t >> 4)));
  ldmatrix_x4(both, shared_address(smem_b + (t & 7) * 2 + (t >> 3 & 1)));
  const u32 frag_b[2] = {both[0], both[1]};
  float sum[4] = {};
  mma_m16n8k16(sum, frag_a, frag_b, __nv_bfloat16());
  for (int i = 0; i < 4; i++) d[(t / 4 + 8 * (i >> 1)) * 8 + 2 * (t & 3) + (i & 1)] = sum[i];
}

// A ring of three 512-byte stages: stage i of `in` goes through shared memory and is read in reverse order of lanes.
extern "C" __global__ void ring(const uint4* in,   // (n, 32)
                                uint4* out,        // (n, 32)
                                int n) {
  constexpr int STAGES = 3;
  DYNAMIC_SHARED(smem);
  Carver carver(smem);
  uint4* stages = carver.take<uint4>(STAGES * 32);
  const int t = threadIdx.x;
  for (int i = 0; i < STAGES - 1; i++) {
    if (i < n) cp_async_16(shared_address(stages + i * 32 + t), in + i * 32 + t);
    cp_async_commit();
  }
  for (int i = 0; i < n; i++) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();  // stage i has landed for all
    const int next = i + STAGES - 1;
    if (next < n) cp_async_16(shared_address(stages + next % STAGES * 32 + t), in + next * 32 + t);
    cp_async_commit();
    out[i * 32 + t] = stages[i % STAGES * 32 + 31 - t];
  }
}

extern "C" __global__ void producer(const float* in,  // (n, 32)
                                    float* out,       // (3, 32)
                                    int n) {          // warp 0 fills, warps 1 to 3 drain
  DYNAMIC_SHARED(smem);
  Carver carver(smem);
  float* buffer = carver.take<float>(32);
  const int warp = threadIdx.x / 32, lane = threadIdx.x & 31;
  float sum = 0;
  for (int i = 0; i < n; i++) {
    if (warp == 0) {
      if (i) bar_sync(2, 128);  // drained
      buffer[lane] = in[i * 32 + lane];
      bar_arrive(1, 128);
    } else {
      bar_sync(1, 128);  // filled
      sum += buffer[31 - lane] * warp;
      if (i + 1 < n) bar_arrive(2, 128);  // drained
    }
  }
  if (warp) out[(warp - 1) * 32 + lane] = sum;
}

// The last block to arrive sums what all blocks have written.
extern "C" __global__ void last_block_sums(const float* in,   // (blocks, 32)
                                           float* partial,    // (blocks, 32)
                                           float* out,        // (32,)
                                           u32* arrivals) {   // (1,) zero
  DYNAMIC_SHARED(smem);
  Carver carver(smem);
  u32* before = carver.take<u32>(1);
  const int t = threadIdx.x;
  partial[blockIdx.x * 32 + t] = in[blockIdx.x * 32 + t];
  __syncthreads();  // partial sums stored
  if (t == 0) *before = atomic_add_acq_rel(arrivals, 1);
  __syncthreads();  // count known
  if (*before + 1 != gridDim.x) return;
  float sum = 0;
  for (u32 b = 0; b < gridDim.x; b++) sum += partial[b * 32 + t];
  out[t] = sum;
}

// One-shot all-reduce: a rank publishes its part, raises its flag at every peer, waits for all flags, sums.
extern "C" __global__ void exchange(float* const* parts,   // per rank: (n,)
                                    u32* const* flags,     // per rank: (world,) zero
                                    const float* in,       // (n,)
                                    float* out,            // (n,)
                                    int n, int rank, int world) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) parts[rank][i] = in[i];
  __syncthreads();
  const int t = threadIdx.x;
  if (t < world) {
    st_release_sys(flags[t] + rank, 1);
    while (ld_acquire_sys(flags[rank] + t) == 0) {}
  }
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    float sum = 0;
    for (int r = 0; r < world; r++) sum += parts[r][i];
    out[i] = sum;
  }
}

extern "C" __global__ void fma_pairs(const half2* a, const half2* b, const half2* c, half2* d) {
  d[threadIdx.x] = __hfma2(a[threadIdx.x], b[threadIdx.x], c[threadIdx.x]);
}

extern "C" __global__ void fma_bfloat_pairs(const __nv_bfloat162* a, const __nv_bfloat162* b, const __nv_bfloat162* c,
                                            __nv_bfloat162* d) {
  d[threadIdx.x] = __hfma2(a[threadIdx.x], b[threadIdx.x], c[threadIdx.x]);
}
