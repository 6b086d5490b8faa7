// PTX ISA, "Warp Level Matrix Multiply-Accumulate Instructions": ldmatrix, stmatrix, mma of 16-bit numbers.
#include "lanes.h"
#include "mma_sum.h"

namespace softgpu {
namespace {

// Lane l names row l % 8 of matrix l / 8, and holds of each matrix row l / 4, columns 2 (l % 4) and +1.
template <int COUNT, bool TRANSPOSED>
void ldmatrix_lanes(Warp& w, I i, u32) {
  u64 a[LANES];
  u8* p[LANES];
  addresses(w, i, a);
  reach(w, i, COUNT == 4 ? ALL : (1u << 8 * COUNT) - 1, a, Space::Shared, 16, p);
  u16 rows[COUNT][8][8];
  for (int k = 0; k < COUNT; k++)
    for (int r = 0; r < 8; r++) std::memcpy(rows[k][r], p[8 * k + r], 16);
  for (int k = 0; k < COUNT; k++) {
    u32* d = w.at<u32>(i.o[k]);
    for (int l = 0; l < LANES; l++) {
      const int r = l / 4, c = 2 * (l % 4);
      d[l] = TRANSPOSED ? rows[k][c][r] | u32(rows[k][c + 1][r]) << 16 : rows[k][r][c] | u32(rows[k][r][c + 1]) << 16;
    }
  }
}
template <int COUNT, bool TRANSPOSED>
void stmatrix_lanes(Warp& w, I i, u32) {
  u64 a[LANES];
  u8* p[LANES];
  addresses(w, i, a);
  reach(w, i, COUNT == 4 ? ALL : (1u << 8 * COUNT) - 1, a, Space::Shared, 16, p);
  for (int k = 0; k < COUNT; k++) {
    const u32* s = w.at<u32>(i.o[k]);
    u16 rows[8][8];
    for (int l = 0; l < LANES; l++) {
      const int r = l / 4, c = 2 * (l % 4);
      (TRANSPOSED ? rows[c][r] : rows[r][c]) = u16(s[l]);
      (TRANSPOSED ? rows[c + 1][r] : rows[r][c + 1]) = u16(s[l] >> 16);
    }
    for (int r = 0; r < 8; r++) std::memcpy(p[8 * k + r], rows[r], 16);
  }
}
#define BY_COUNT(FN)                                                                                   \
  (count == 4   ? (transposed ? (Handler)FN<4, true> : (Handler)FN<4, false>)                          \
   : count == 2 ? (transposed ? (Handler)FN<2, true> : (Handler)FN<2, false>)                          \
                : (transposed ? (Handler)FN<1, true> : (Handler)FN<1, false>))

Handler move_matrix(Form& f) {
  if (!f.has("m8n8") || !f.has("b16")) return nullptr;
  const bool loads = f.op == "ldmatrix", transposed = f.has("trans");
  f.out.flow = Flow::WarpSync, f.out.aligned = true;
  f.out.access.kind = loads ? AccessKind::Read : AccessKind::Write;
  const Operand& what = f.in(loads ? 0 : 1);
  const std::vector<Operand> list = what.kind == Operand::Vector ? what.parts : std::vector<Operand>{what};
  for (size_t k = 0; k < list.size(); k++) f.out.o[k] = loads ? f.decoder.target(list[k]) : f.decoder.source(list[k], 4);
  f.decoder.address(f.in(loads ? 1 : 0), f.out);
  const size_t count = list.size();
  return loads ? BY_COUNT(ldmatrix_lanes) : BY_COUNT(stmatrix_lanes);
}

// o[0..3] d, then the registers of a, b and c. With g = l / 4 and c = 2 (l % 4) a lane holds pairs along k:
//   a[n]  row g + 8 (n & 1), k = c + 8 (n >> 1)      b[n]  k = c + 8 n, column g      d[n]  row g + 8 (n >> 1), column c + (n & 1)
template <class N, int K>
void mma_lanes(Warp& w, I i, u32) {
  constexpr int AS = K / 4, BS = K / 8;
  MmaTile<K> t;
  for (int n = 0; n < AS; n++) {
    const u32* s = w.at<u32>(i.o[4 + n]);
    for (int l = 0; l < LANES; l++) {
      float* to = &t.a[l / 4 + 8 * (n & 1)][2 * (l % 4) + 8 * (n >> 1)];
      to[0] = N::up(u16(s[l])), to[1] = N::up(u16(s[l] >> 16));
    }
  }
  for (int n = 0; n < BS; n++) {
    const u32* s = w.at<u32>(i.o[4 + AS + n]);
    for (int l = 0; l < LANES; l++) {
      const int k = 2 * (l % 4) + 8 * n;
      t.b[k][l / 4] = N::up(u16(s[l])), t.b[k + 1][l / 4] = N::up(u16(s[l] >> 16));
    }
  }
  for (int n = 0; n < 4; n++) {
    const float* s = w.at<float>(i.o[4 + AS + BS + n]);
    for (int l = 0; l < LANES; l++) t.d[l / 4 + 8 * (n >> 1)][2 * (l % 4) + (n & 1)] = s[l];
  }
  constexpr int least = std::is_same_v<N, Half> ? -14 : -126;
  if (w.block->run->options.arch >= 90) sum_as_hopper(t, least);
  else sum_as_ampere(t, least);
  for (int n = 0; n < 4; n++) {
    float* s = w.at<float>(i.o[n]);
    for (int l = 0; l < LANES; l++) s[l] = t.d[l / 4 + 8 * (n >> 1)][2 * (l % 4) + (n & 1)];
  }
}
Handler mma(Form& f) {
  const bool k16 = f.has("m16n8k16"), k8 = f.has("m16n8k8");
  if (!(k16 || k8) || !f.has("row") || !f.has("col") || f.part_from_end(4) != "f32" || f.type != "f32") return nullptr;
  f.out.flow = Flow::WarpSync, f.out.aligned = true;
  size_t at = 0;
  for (size_t list = 0; list < 4; list++)
    for (auto& o : f.in(list).parts) f.out.o[at++] = list == 0 ? f.decoder.target(o) : f.decoder.source(o, 4);
  const std::string& of = f.part_from_end(3);
  if (of == "f16") return k16 ? (Handler)mma_lanes<Half, 16> : (Handler)mma_lanes<Half, 8>;
  if (of == "bf16") return k16 ? (Handler)mma_lanes<Bfloat, 16> : (Handler)mma_lanes<Bfloat, 8>;
  return nullptr;
}

}  // namespace

const Family MATRICES = {{"ldmatrix", move_matrix}, {"stmatrix", move_matrix}, {"mma", mma}};

}  // namespace softgpu
