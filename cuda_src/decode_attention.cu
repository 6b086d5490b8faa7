// decode_attention: softmax(scale q k^T) v of one new token a sequence.   caller: cutpq/model/decode_attention.py
//   y[b, kv, i] = sum over keys s of p[s] * values[b, kv, s],   p = softmax(scale * q[b, kv, i] . keys[b, kv, s])
// over max(0, position - window + 1) <= s <= position; zero where position is -1. `rep` query heads i share the keys and
// values of head kv, which are read from memory once for HEADS of them: the kernel is bound by the bytes of the cache.
//
// Keys are split at multiples of split_keys; a block takes one split of one pair of sequence and key/value head, and its
// warps take tiles of 16 keys in turns. Blocks of splits that the query does not see leave at once. The block that comes
// last adds the parts of all splits in their order (tile/attention_parts.cuh). The bits of a row therefore depend on its
// own numbers, position and window, and on split_keys, but not on the grid or on other rows.
//
// positions is read here and not by the host, so that a CUDA graph can be replayed with other positions.
#include "ptx/dependent_launch.cuh"
#include "ptx/memory_order.cuh"
#include "tile/attention_parts.cuh"

constexpr int WARPS = THREADS / 32;

// Whether this block is the last of `count` to get here; then all see what the others wrote before. The counter is zero
// before and after.
DEVICE bool is_last(u32* smem_arrived, u32* arrivals, u32 count) {
  __syncthreads();  // this block's part is stored
  if (threadIdx.x == 0) *smem_arrived = atomic_add_acq_rel(arrivals, 1);
  __syncthreads();  // *smem_arrived is written
  if (*smem_arrived != count - 1) return false;
  if (threadIdx.x == 0) *arrivals = 0;
  return true;
}

// Blocks of a multiprocessor: as many as have registers enough for their fragments; 16 heads hold twice as many as 8.
constexpr int MIN_BLOCKS_PER_SM = HEADS == 16 || D > 128 ? 2 : D <= 64 ? 4 : 3;

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS_PER_SM)
decode_attention(const act_t* __restrict__ q,       // (B, KV, rep, D)
                 const act_t* __restrict__ keys,    // (B, KV, length, D)
                 const act_t* __restrict__ values,  // (B, KV, length, D)
                 const int* __restrict__ positions,  // (B,), each below length; -1 for no token
                 act_t* __restrict__ y,             // (B, KV, rep, D)
                 float* __restrict__ parts,         // (gridDim.x, gridDim.y, PART)
                 u32* __restrict__ arrivals,        // (gridDim.x,) counters, zero before and after
                 int kv_heads,
                 int rep,         // query heads that share a key/value head
                 int length,      // keys that the cache has room for
                 int split_keys,  // keys of a split, a multiple of 16
                 int window,      // keys that a query attends to, at most
                 float scale) {   // factor of scores times log2(e)
  DYNAMIC_SHARED(smem);
  Carver carver(smem);
  const Queries queries = {carver.take<u32>(Queries::WORDS)};
  float* smem_parts = carver.take<float>(WARPS * PART);
  u32* smem_arrived = carver.take<u32>(1);
  let_next_kernel_start();

  const int blocks_of_pair = (rep + HEADS - 1) / HEADS, warp = threadIdx.x / 32;
  const int pair = blockIdx.x / blocks_of_pair, first_head = blockIdx.x % blocks_of_pair * HEADS;
  const int heads = min(HEADS, rep - first_head);
  const size_t first_row = size_t(pair) * rep + first_head;
  y += first_row * D;

  const int end = positions[pair / kv_heads] + 1, begin = max(0, end - window);  // keys that the query sees
  if (end == 0 && blockIdx.y == 0)
    for (int i = threadIdx.x; i < heads * D; i += THREADS) y[i] = Number<DTYPE>::one(0.0f);
  const int first_split = begin / split_keys, splits = (end + split_keys - 1) / split_keys - first_split;
  const int split = int(blockIdx.y) - first_split;
  if (split < 0 || split >= splits) return;
  const int from = max(begin, int(blockIdx.y) * split_keys), to = min(end, int(blockIdx.y + 1) * split_keys);

  queries.stage(q + first_row * D, heads);
  __syncthreads();  // queries are staged
  keys += size_t(pair) * length * D, values += size_t(pair) * length * D;
  Attention attention;
#pragma unroll 1
  for (int key = (from / TILE_KEYS + warp) * TILE_KEYS; key < to; key += WARPS * TILE_KEYS)
    attention.attend(queries, keys, values, key, from, to, scale);
  store_part(smem_parts + warp * PART, attention);
  __syncthreads();  // parts of all warps are stored

  if (splits == 1) return combine_parts(smem_parts, WARPS, ToY{y, heads});
  parts += size_t(blockIdx.x) * gridDim.y * PART;
  combine_parts(smem_parts, WARPS, ToPart{parts + split * PART});
  if (is_last(smem_arrived, arrivals + blockIdx.x, splits)) combine_parts(parts, splits, ToY{y, heads});
}
