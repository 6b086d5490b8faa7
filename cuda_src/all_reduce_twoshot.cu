// all_reduce_twoshot: a reduce-scatter and an all-gather over peer memory.   caller: cutpq/ranks/ipc.py
//
//   step 1   x, encoded or plain, share by share into the slabs of the ranks that own the shares
//            barrier of all ranks (Slabs::meet)
//   step 2   this rank adds what all ranks stored of its own share, in float32 from rank 0 to the last, and stores the
//            encoded or rounded sum behind it
//            barrier of all ranks
//   step 3   y = every share of the sum, read from its owner's slab. The owner reads its own encoded bytes too, so that
//            all ranks have the same bits.
//
// Steps 1 and 3 use the links, barriers and step 2 do not. So the second half of the grid's blocks begins when the first
// half has stored its part of x: from then on one half uses the links while the other meets and adds.
//
// Successive all-reduces use the two halves of a slab in turns, because a slow peer may still be in step 3.
// STEP 0 runs all steps; ranks that share a GPU launch STEP 1, 2 and 3 with a barrier of the host between them.
#include "target.cuh"
#include "tile/share.cuh"
#include "tile/slab.cuh"
#include "tile/tiles_in_flight.cuh"

using MyTeam = Team<Wire>;

// A rank's share and what slabs have of it. The owner's slab has a place for each rank's wire of the share, then the
// wire of the sum. Places have equal sizes, multiples of 16 bytes, so that every wire is aligned.
struct Place {
  Share share;
  int tiles;
  u32 first;  // index of the share's first number

  __device__ __forceinline__ Place(int n, int owner) : share(share_of<Wire>(n, RANKS, owner)) {
    tiles = tiles_of(share.granules);
    first = share.first * Wire::GRANULE;
  }
  static __device__ __forceinline__ size_t bytes(int n) {
    return (Wire::bytes(share_of<Wire>(n, RANKS, 0).granules) + 15) / 16 * 16;
  }
  __device__ __forceinline__ bool has(u32 group) const { return group / GROUPS_OF_GRANULE < u32(share.granules); }
};

// The first tile of this block in an owner's share; others follow GRID apart. Of two neighbours each half of the grid has
// one, so that in small sums, too, both have work. From one share to the next a block's place turns by so many tiles that
// its first tiles are spread evenly: what is left over where each block has as many tiles goes to other blocks in each
// share.
constexpr int TURNED = GRID / RANKS;
DEVICE int place_of_block() { return blockIdx.x % (GRID / 2) * 2 + blockIdx.x / (GRID / 2); }
DEVICE int first_tile(int owner) {
  const int turned = place_of_block() + owner * TURNED;
  return turned < GRID ? turned : turned - GRID;
}

// The tiles of all shares that a block takes in turn, numbered through: of each share the first, then of each the
// second. It begins with the share of which it has the earliest tile, so that tile numbers never fall, and those beyond
// the shares come last. Blocks begin with different owners, so that they do not all use one rank's link at a time.
struct Turn {
  int owner, tile;

  __device__ __forceinline__ Turn() {}
  __device__ __forceinline__ explicit Turn(int number) {
    const int wrapped = TURNED ? min((GRID - place_of_block() + TURNED - 1) / TURNED, RANKS) : RANKS;
    owner = (wrapped + number) % RANKS;
    tile = first_tile(owner) + number / RANKS * GRID;
  }
  // How many of them have tiles in the largest share.
  static __device__ __forceinline__ int count(int n) {
    const int tiles = Place(n, 0).tiles;
    int turns = tiles / GRID * RANKS;
#pragma unroll
    for (int owner = 0; owner < RANKS; owner++) turns += first_tile(owner) < tiles % GRID;
    return turns;
  }
};

DEVICE void send_shares(const Slabs& all, const act_t* x, int n, u16* smem_scratch) {
  const int turns = Turn::count(n);
  const size_t mine = all.rank * Place::bytes(n);
#pragma unroll 1
  for (int turn = MyTeam::number(); turn < turns; turn += IN_FLIGHT * Wire::TEAMS) {
    Turn at[IN_FLIGHT];
    u32 groups[IN_FLIGHT];
    u8* wires[IN_FLIGHT];
#pragma unroll
    for (int i = 0; i < IN_FLIGHT; i++) {
      at[i] = Turn(min(turn + i * Wire::TEAMS, turns - 1));  // beyond the last turn nothing new is loaded
      groups[i] = Place(n, at[i].owner).first / 8 + MyTeam::group_to_encode(at[i].tile);
      wires[i] = all.data(at[i].owner, mine);
    }
    Wire::Numbers v[IN_FLIGHT];
    load_tiles(v, x, groups, n);
#pragma unroll
    for (int i = 0; i < IN_FLIGHT; i++) {
      if (turn + i * Wire::TEAMS >= turns) break;
      Wire::put(wires[i], Place(n, at[i].owner).share.granules, at[i].tile, v[i], smem_scratch);
    }
  }
}

// A block has few tiles of its own share, often an odd number, so that teams would wait for each other: all its threads
// take each tile together.
DEVICE void add_own_share(const Slabs& all, int n, u16* smem_scratch) {
  const Place place(n, all.rank);
  const u8* wires[RANKS];
#pragma unroll
  for (int r = 0; r < RANKS; r++) wires[r] = all.data(all.rank, r * Place::bytes(n));
  u8* total = all.data(all.rank, RANKS * Place::bytes(n));
#pragma unroll 1
  for (int tile = first_tile(all.rank); tile < place.tiles; tile += SUM_TILES * GRID) {
    WireByEight::Raw raw[SUM_TILES][RANKS];
    load_groups<WireByEight>(raw, wires, place.share.granules, tile);
#pragma unroll
    for (int i = 0; i < SUM_TILES; i++) {
      if (tile + i * GRID >= place.tiles) break;
      float sum[8];
      WireByEight::add_up(sum, raw[i]);
      WireByEight::put(total, place.share.granules, tile + i * GRID, sum, smem_scratch);
    }
  }
}

DEVICE void collect(const Slabs& all, act_t* y, int n) {
  const int turns = Turn::count(n);
  const size_t total = RANKS * Place::bytes(n);
#pragma unroll 1
  for (int turn = MyTeam::number(); turn < turns; turn += IN_FLIGHT * Wire::TEAMS) {
    Turn at[IN_FLIGHT];
    Wire::Raw raw[IN_FLIGHT][1];
#pragma unroll
    for (int i = 0; i < IN_FLIGHT; i++) {
      at[i] = Turn(min(turn + i * Wire::TEAMS, turns - 1));
      const Place place(n, at[i].owner);
      const u32 group = MyTeam::group_to_decode(at[i].tile);
      if (place.has(group)) raw[i][0] = Wire::load<true>(all.data(at[i].owner, total), place.share.granules, group);
    }
#pragma unroll
    for (int i = 0; i < IN_FLIGHT; i++) {
      if (turn + i * Wire::TEAMS >= turns) break;
      const Place place(n, at[i].owner);
      const u32 group = MyTeam::group_to_decode(at[i].tile);
      if (!place.has(group)) continue;
      float v[8 * Wire::TEAMS];
      Wire::add_up(v, raw[i]);
      store_groups(y, place.first, group, n, v);
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
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
  if (STEP == 0) all.follow_first_half(timeout_us);
  if (STEP == 0 || STEP == 1) send_shares(all, x, n, smem_scratch);
  if (STEP == 0) all.let_second_half_follow();
  if (STEP == 0 && !all.meet(0, smem_missing, status, timeout_us)) return;
  if (STEP == 0 || STEP == 2) add_own_share(all, n, smem_scratch);
  if (STEP == 0 && !all.meet(1, smem_missing, status, timeout_us)) return;
  if (STEP == 0 || STEP == 3) collect(all, y, n);
  if (STEP == 0 || STEP == 3) all.finish();
}
