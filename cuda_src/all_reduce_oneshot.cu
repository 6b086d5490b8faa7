// all_reduce_oneshot: every rank reads the arrays of all ranks and adds them.   caller: cutpq/ranks/ipc.py
//
//   step 1   this rank's slab = x, encoded or plain
//            barrier of all ranks (Slabs::meet)
//   step 2   y = sum of all slabs, in float32 from rank 0 to the last, rounded once
//
// Successive all-reduces use the two halves of a slab in turns, because a fast rank may begin the next one while a slow
// peer still reads this one. It cannot reach the one after that: its barrier waits for the slow peer.
// STEP 0 runs both steps. Ranks that share a GPU cannot wait for each other inside a kernel, so the host launches
// STEP 1 and STEP 2 with its own barrier between them.
#include "target.cuh"
#include "tile/slab.cuh"
#include "tile/tiles_in_flight.cuh"

using MyTeam = Team<Wire>;
constexpr int SUMS = MyTeam::SUM_TILES_AT_A_TIME;

extern "C" __global__ void __launch_bounds__(THREADS, 2)
all_reduce_oneshot(const slab_t* slabs,  // (RANKS,) addresses of all slabs in this process
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
  const int granules = n / Wire::GRANULE + (n % Wire::GRANULE != 0), tiles = tiles_of(granules);

  if (STEP != 2) {
    u8* wire = all.data(rank, 0);
#pragma unroll 1
    for (int tile = blockIdx.x + MyTeam::number() * GRID; tile < tiles; tile += IN_FLIGHT * MyTeam::NEXT) {
      u32 groups[IN_FLIGHT];
#pragma unroll
      for (int i = 0; i < IN_FLIGHT; i++) groups[i] = MyTeam::group_to_encode(tile + i * MyTeam::NEXT);
      Wire::Numbers v[IN_FLIGHT];
      load_tiles(v, x, groups, n);
#pragma unroll
      for (int i = 0; i < IN_FLIGHT; i++)
        if (tile + i * MyTeam::NEXT < tiles) Wire::put(wire, granules, tile + i * MyTeam::NEXT, v[i], smem_scratch);
    }
  }
  if (STEP == 1 || (STEP == 0 && !all.meet(0, smem_missing, status, timeout_us))) return;

  const u8* wires[RANKS];
#pragma unroll
  for (int r = 0; r < RANKS; r++) wires[r] = all.data(r, 0);
#pragma unroll 1
  for (int tile = blockIdx.x + MyTeam::number() * GRID; tile < tiles; tile += SUMS * MyTeam::NEXT) {
    Wire::Raw raw[SUMS][RANKS];
    load_groups<Wire>(raw, wires, granules, tile);
#pragma unroll
    for (int i = 0; i < SUMS; i++) {
      const u32 group = MyTeam::group_to_decode(tile + i * MyTeam::NEXT);
      if (group / GROUPS_OF_GRANULE >= u32(granules)) continue;
      float sum[8 * Wire::TEAMS];
      Wire::add_up(sum, raw[i]);
      store_groups(y, 0, group, n, sum);
    }
  }
  all.finish();
}
