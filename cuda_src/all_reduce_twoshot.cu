// all_reduce_twoshot: a reduce-scatter and an all-gather over peer memory.   caller: cutpq/ranks/ipc.py
//
//   step 1   this rank's slab = x, encoded or plain, share by share
//            barrier of all ranks (Slabs::meet)
//   step 2   this rank adds its own share from all slabs, in float32 from rank 0 to the last, and stores the encoded
//            or rounded sum behind the shares of step 1
//            barrier of all ranks
//   step 3   y = every share of the sum, read from its owner's slab. The owner reads its own encoded bytes too, so that
//            all ranks have the same bits.
//
// Successive all-reduces use the two halves of a slab in turns, because a slow peer may still be in step 3.
// STEP 0 runs all steps; ranks that share a GPU launch STEP 1, 2 and 3 with a barrier of the host between them.
#include "target.cuh"
#include "tile/share.cuh"
#include "tile/slab.cuh"
#include "tile/tiles_in_flight.cuh"

// A rank's share and the place of its wire in a half of a slab. Places have equal sizes, multiples of 16 bytes, so that
// every wire is aligned.
struct Place {
  Share share;
  int tiles;
  u32 first;      // index of the share's first number
  size_t offset;  // where the place begins, in bytes from the start of the half

  __device__ __forceinline__ Place(int n, int owner) : share(share_of<Wire>(n, RANKS, owner)) {
    tiles = tiles_of(share.granules);
    first = share.first * Wire::GRANULE;
    offset = owner * bytes(n);
  }
  static __device__ __forceinline__ size_t bytes(int n) {
    return (Wire::bytes(share_of<Wire>(n, RANKS, 0).granules) + 15) / 16 * 16;
  }
  __device__ __forceinline__ bool has(u32 group) const { return group / GROUPS_OF_GRANULE < u32(share.granules); }
};

DEVICE void lay_down(const Slabs& all, const act_t* x, int n, u16* smem_scratch) {
#pragma unroll 1
  for (int owner = 0; owner < RANKS; owner++) {
    const Place place(n, owner);
    u8* wire = all.data(all.rank, place.offset);
#pragma unroll 1
    for (int tile = blockIdx.x; tile < place.tiles; tile += TILES * GRID) {
      float v[TILES][8];
      load_tiles(v, x, place.first / 8 + tile * THREADS + threadIdx.x, n);
#pragma unroll
      for (int i = 0; i < TILES; i++)
        if (tile + i * GRID < place.tiles) Wire::put(wire, place.share.granules, tile + i * GRID, v[i], smem_scratch);
    }
  }
}

DEVICE void add_own_share(const Slabs& all, int n, u16* smem_scratch) {
  const Place place(n, all.rank);
  const u8* wires[RANKS];
#pragma unroll
  for (int r = 0; r < RANKS; r++) wires[r] = all.data(r, place.offset);
  u8* total = all.data(all.rank, RANKS * Place::bytes(n));
#pragma unroll 1
  for (int tile = blockIdx.x; tile < place.tiles; tile += SUM_TILES * GRID) {
    Wire::Raw raw[SUM_TILES][RANKS];
    load_groups(raw, wires, place.share.granules, tile * THREADS + threadIdx.x);
#pragma unroll
    for (int i = 0; i < SUM_TILES; i++) {
      if (tile + i * GRID >= place.tiles) break;
      float sum[8];
      Wire::add_up(sum, raw[i]);
      Wire::put(total, place.share.granules, tile + i * GRID, sum, smem_scratch);
    }
  }
}

DEVICE void collect(const Slabs& all, act_t* y, int n) {
#pragma unroll 1
  for (int owner = 0; owner < RANKS; owner++) {
    const Place place(n, owner);
    const u8* total[1] = {all.data(owner, RANKS * Place::bytes(n))};
#pragma unroll 1
    for (int tile = blockIdx.x; tile < place.tiles; tile += TILES * GRID) {
      Wire::Raw raw[TILES][1];
      load_groups(raw, total, place.share.granules, tile * THREADS + threadIdx.x);
#pragma unroll
      for (int i = 0; i < TILES; i++) {
        const u32 group = (tile + i * GRID) * THREADS + threadIdx.x;
        if (!place.has(group)) continue;
        float v[8];
        Wire::add_up(v, raw[i]);
        store_eight(y, place.first + group * 8, n, v);
      }
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
all_reduce_twoshot(const slab_t* slabs,  // (RANKS,) addresses of all slabs in this process
                   const act_t* x,       // (n,), aligned to 16 bytes
                   act_t* y,             // (n,), aligned to 16 bytes
                   u32* status,          // (1,) in host memory: 1 + the rank that timed out
                   int rank,
                   int n,
                   u32 half_bytes,  // bytes of one half of a slab's data
                   u32 timeout_us) {
  DYNAMIC_SHARED(smem);
  Carver carver(smem);
  u32* smem_missing = carver.take<u32>(RANKS);
  u16* smem_scratch = carver.take<u16>(Wire::SCRATCH);

  const Slabs all(slabs, rank, half_bytes);
  if (STEP == 0 || STEP == 1) lay_down(all, x, n, smem_scratch);
  if (STEP == 0 && !all.meet(0, smem_missing, status, timeout_us)) return;
  if (STEP == 0 || STEP == 2) add_own_share(all, n, smem_scratch);
  if (STEP == 0 && !all.meet(1, smem_missing, status, timeout_us)) return;
  if (STEP == 0 || STEP == 3) collect(all, y, n);
  if (STEP == 0 || STEP == 3) all.finish();
}
