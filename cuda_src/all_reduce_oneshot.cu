// all_reduce_oneshot: every rank lays down all it has, reads what all have, and adds.   caller: cutpq/ranks/ipc.py
//
//   step 1   x, encoded or as it is, into this rank's slab
//            meet
//   step 2   the slabs of all ranks -> y, added in float32 from rank 0 to the last, rounded once
//
// The slab has two halves, which sums use in turns: a fast rank may begin the next sum while a slow peer still reads this one.
// It cannot begin the one after that, since it would have met the peer in between.
// STEP 0 is all of it. Where ranks share a GPU, and so cannot wait for each other in a kernel, the host launches
// steps 1 and 2 and lets the ranks meet in between.
#include "target.cuh"
#include "tile/either_wire.cuh"
#include "tile/rank_sum.cuh"
#include "tile/slab.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1)
all_reduce_oneshot(const slab_t* slabs,  // (RANKS,) where each rank's slab is seen from here
                   const act_t* x,       // (n,), aligned to 16 bytes
                   act_t* y,             // (n,), aligned to 16 bytes
                   u32* status,          // (1,) that the host can read: 1 + a rank that did not come
                   int rank,
                   int n,
                   u32 half_bytes,  // of a slab's data
                   u32 timeout_us) {
  DYNAMIC_SHARED(smem);
  Carver carver(smem);
  u32* smem_missing = carver.take<u32>(RANKS);
  u16* smem_scratch = carver.take<u16>(Wire::SCRATCH);

  const Slabs all(slabs, rank, half_bytes);
  const int granules = n / Wire::GRANULE + (n % Wire::GRANULE != 0), tiles = tiles_of(granules);

  if (STEP != 2)
    for (int tile = blockIdx.x; tile < tiles; tile += GRID) {
      float v[8];
      load_eight(v, x, (tile * THREADS + threadIdx.x) * 8, n);
      Wire::put(all.data(rank, 0), granules, tile, v, smem_scratch);
    }
  if (STEP == 1 || (STEP == 0 && !all.meet(0, smem_missing, status, timeout_us))) return;

  const u8* wires[RANKS];
#pragma unroll
  for (int r = 0; r < RANKS; r++) wires[r] = all.data(r, 0);
  for (int tile = blockIdx.x; tile < tiles; tile += GRID) {
    const u32 group = tile * THREADS + threadIdx.x;
    if (group / GROUPS_OF_GRANULE >= u32(granules)) continue;
    float sum[8];
    sum_of_ranks<Wire>(sum, wires, granules, group);
    store_eight(y, group * 8, n, sum);
  }
  all.finish();
}
