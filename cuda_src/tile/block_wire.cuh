// Reads and writes the wire of a block codec, whose bytes cutpq/codecs/layout.py sizes. A group is eight consecutive
// numbers of a share, the work of one thread; a tile is THREADS groups.
#pragma once
#include "../target.cuh"
#include "bit_pack.cuh"
#include "block_scale.cuh"
#include "packed_sum.cuh"

constexpr int GROUPS_OF_BLOCK = BLOCK / 8;
constexpr int BLOCKS_OF_TILE = THREADS / GROUPS_OF_BLOCK;
static_assert(BLOCKS_OF_TILE * SCALE_BITS % 8 == 0, "the scales of a tile are whole bytes");

struct BlockWire {
  static constexpr int GRANULE = BLOCK;           // numbers: shares are cut at its multiples
  static constexpr int TEAMS = 1;                 // of a block's threads, see tile/either_wire.cuh
  static constexpr int SCRATCH = BLOCKS_OF_TILE;  // u16 words of shared memory that `put` needs

  using Numbers = float[8];  // what a thread puts into a tile

  static __device__ __forceinline__ size_t elements_bytes(int blocks) {
    return size_t(blocks) * (BLOCK / 8 * ELEMENT_BITS);
  }
  static __device__ __forceinline__ size_t scales_bytes(int blocks) {
    return (size_t(blocks) * SCALE_BITS + 7) / 8;
  }
  static __device__ __forceinline__ size_t bytes(int blocks) { return elements_bytes(blocks) + scales_bytes(blocks); }

  // Encodes group number `group` of a share of `blocks` codec blocks but for its scale, which it returns; v holds the
  // eight numbers. All threads of a warp call it together, with neighbouring groups; groups beyond the share are not
  // written.
  static __device__ __forceinline__ u32 put_codes(u8* wire, int blocks, u32 group, const float* v) {
    u32 amax = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) amax = max(amax, __float_as_uint(v[i]) & FLOAT_MAGNITUDE);
#pragma unroll
    for (int distance = GROUPS_OF_BLOCK / 2; distance; distance /= 2)
      amax = max(amax, __shfl_xor_sync(FULL_WARP, amax, distance));
    const u32 scale = scale_code(amax);
    const Divisor X(scale);
    u32 codes[2];
#pragma unroll
    for (int w = 0; w < 2; w++) {
      float field[4], signed_by[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        signed_by[i] = v[code_at(w, i)];
        field[i] = X.field(signed_by[i]);
      }
      codes[w] = element_codes(field, signed_by);
    }
    const u64 packed = scale == u32(SCALE_NAN) ? 0 : pack(codes);
    store_codes(wire, group, packed, group / GROUPS_OF_BLOCK < u32(blocks), elements_bytes(blocks));
    return scale;
  }

  // Encodes tile number `tile` of a share of `blocks` codec blocks; v holds the eight numbers of this thread. All
  // threads of the block call it together; those beyond the share write nothing.
  static __device__ __forceinline__ void put(u8* wire, int blocks, int tile, const float* v, u16* smem_scales) {
    const u32 group = tile * THREADS + threadIdx.x, block = group / GROUPS_OF_BLOCK;
    const bool inside = block < u32(blocks);
    const u32 scale = put_codes(wire, blocks, group, v);
    u8* scales = wire + elements_bytes(blocks);
    if constexpr (SCALE_BITS == 8) {  // a scale is a whole byte: the first thread of a codec block stores it
      if (inside && group % GROUPS_OF_BLOCK == 0) scales[block] = u8(scale);
      return;
    }
    if (group % GROUPS_OF_BLOCK == 0) smem_scales[threadIdx.x / GROUPS_OF_BLOCK] = u16(inside ? scale : 0);
    __syncthreads();  // the scales of the tile are stored
    for (int i = threadIdx.x; i < BLOCKS_OF_TILE * SCALE_BITS / 8; i += THREADS) {
      const size_t at = size_t(tile) * (BLOCKS_OF_TILE * SCALE_BITS / 8) + i;
      if (at < scales_bytes(blocks)) scales[at] = scale_byte(smem_scales, i);
    }
    __syncthreads();  // all threads have read smem_scales, which the next tile overwrites
  }

  // Encoded groups of one codec block in registers.
  template <int GROUPS>
  struct RawGroups {
    u64 packed[GROUPS];
    u32 scale;
  };
  using Raw = RawGroups<1>;

  static __device__ __forceinline__ bool is_aligned(const u8* wire) { return ::is_aligned(wire, CODES_UNIT); }

  // Loads group number `group` of a share, and others of its codec block at equal distances behind it. ALIGNED promises
  // is_aligned(wire).
  template <bool ALIGNED, int GROUPS = 1>
  static __device__ __forceinline__ RawGroups<GROUPS> load(const u8* wire, int blocks, u32 group) {
    RawGroups<GROUPS> raw;
    const u8* codes = wire + size_t(group) * CODES_BYTES;
#pragma unroll
    for (int i = 0; i < GROUPS; i++)
      raw.packed[i] = load_codes<ALIGNED>(codes + i * (GROUPS_OF_BLOCK / GROUPS) * CODES_BYTES);
    raw.scale = load_scale(wire + elements_bytes(blocks), group / GROUPS_OF_BLOCK);
    return raw;
  }

  // sum = the decoded terms, added in the order of the array; eight numbers for each group.
  template <int COUNT, int GROUPS>
  static __device__ __forceinline__ void add_up(float* sum, const RawGroups<GROUPS> (&terms)[COUNT]) {
    const ScalesOfRanks<COUNT> scales(terms);
    const bool ordinary = int(scales.highest) <= ORDINARY_SCALE;
    if constexpr (ScalesOfRanks<COUNT>::PACKED) {
      if (ordinary && scales.sum_is_exact()) {
#pragma unroll
        for (int group = 0; group < GROUPS; group++)
#pragma unroll
          for (int w = 0; w < 2; w++) add_word(sum + 8 * group, terms, scales, group, w);
        return;
      }
    }
    if (ordinary) add_in_float<true>(sum, terms);
    else add_in_float<false>(sum, terms);
  }

 private:
  // The sum of the codes of a group's word w, of a few ranks at a time in half2.
  template <int COUNT, int GROUPS>
  static __device__ __forceinline__ void add_word(float* sum, const RawGroups<GROUPS> (&terms)[COUNT],
                                                  const ScalesOfRanks<COUNT>& scales, int group, int w) {
    constexpr int SIZE = ScalesOfRanks<COUNT>::SIZE;
    float numbers[4];
#pragma unroll
    for (int few = 0; few * SIZE < COUNT; few++) {
      const PackedSum<SIZE> packed(scales.lowest_of[few]);
      half2 pairs[2];
#pragma unroll
      for (int i = few * SIZE; i < COUNT && i < (few + 1) * SIZE; i++) {
        u32 codes[2];
        unpack(codes, terms[i].packed[group]);
        packed.add(pairs, codes[w], terms[i].scale, i == few * SIZE);
      }
      packed.add_to(numbers, pairs, few == 0);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) sum[code_at(w, i)] = numbers[i];
  }

  // The sum in float32. ORDINARY promises scales up to ORDINARY_SCALE, for which a fused multiply-add rounds like a
  // multiplication and an addition (tile/block_scale.cuh).
  template <bool ORDINARY, int COUNT, int GROUPS>
  static __device__ __forceinline__ void add_in_float(float* sum, const RawGroups<GROUPS> (&terms)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      const float X = ORDINARY ? scale_of_fields(terms[i].scale) : scale_value(terms[i].scale);
#pragma unroll
      for (int group = 0; group < GROUPS; group++) add<ORDINARY>(sum + 8 * group, terms[i].packed[group], X, i == 0);
    }
  }

  // sum += the decoded group, or sum = it for the first term; X is its scale.
  template <bool ORDINARY>
  static __device__ __forceinline__ void add(float* sum, u64 packed, float X, bool first) {
    u32 codes[2];
    unpack(codes, packed);
#pragma unroll
    for (int w = 0; w < 2; w++) {
      float field[4];
      element_fields(field, codes[w]);
#pragma unroll
      for (int i = 0; i < 4; i++) {
        float& total = sum[code_at(w, i)];
        const float v = ORDINARY ? field[i] : __fmul_rn(field[i], element_of_field());
        const float term = __fmul_rn(v, X);
        total = first ? term : ORDINARY ? fmaf(v, X, total) : __fadd_rn(total, term);
      }
    }
  }

  // Byte i of the bit string of these scale codes.
  static __device__ __forceinline__ u8 scale_byte(const u16* codes, int i) {
    u32 byte = 0;
    for (int k = 8 * i / SCALE_BITS; k <= (8 * i + 7) / SCALE_BITS; k++) {
      const int shift = k * SCALE_BITS - 8 * i;
      byte |= shift >= 0 ? u32(codes[k]) << shift : u32(codes[k]) >> -shift;
    }
    return u8(byte);
  }

  static __device__ __forceinline__ u32 load_scale(const u8* scales, u32 block) {
    const size_t bit = size_t(block) * SCALE_BITS;
    u32 code = scales[bit / 8];
    if (SCALE_BITS == 16 || bit % 8 + SCALE_BITS > 8) code |= u32(scales[bit / 8 + 1]) << 8;
    return code >> (bit % 8) & ((1u << SCALE_BITS) - 1);
  }
};
