// Dequantizes a lane's codes of a tile of 16 rows by 16 columns into operand A of mma: weight = (code - zero) * scale,
// rounded once to act_t. The four pairs of the operand are
//   a[0] column g, rows c, c+1     a[1] column g+8     a[2] column g, rows c+8, c+9     a[3] column g+8
// (codes_fragments.cuh): both numbers of a pair are of one column and share a scale, as pairs 0 and 2 do, and 1 and 3.
//
// OR-ing a code into the low mantissa bits of a power of two adds it to that power, without a conversion instruction.
// Subtracting the power plus the zero point then leaves code - zero, exactly.
#pragma once
#include "../ptx/bits.cuh"
#include "number.cuh"

// Each Dequantizer has a type Scale, made of the float16 scales of a pair, a type Offset, made of its zero points (what
// is to be subtracted), and `weight`, which makes pair i of the codes of a tile, its scales and its offset.
template <int BITS, int DTYPE>
struct Dequantizer;

// Scales of float16 weights: two float16, one for each number of a pair.
struct PairOfScales {
  using Scale = u32;

  static __device__ __forceinline__ Scale scale(u32 pair) { return pair; }
  static __device__ __forceinline__ Scale scale(half both) { return as_u32(__half2half2(both)); }
};

#include "dequant_bytes.cuh"
#include "dequant_nibbles.cuh"

using Dequant = Dequantizer<BITS, DTYPE>;
