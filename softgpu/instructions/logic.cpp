// PTX ISA, "Logic and Shift Instructions", and prmt of "Data Movement and Conversion Instructions".
#include <algorithm>

#include "lanes.h"

namespace softgpu {
namespace {

enum Predicates { AND, OR, XOR, NOT };
template <int F>
void predicate_logic(Warp& w, I i, u32 m) {
  u32 a = *w.at<u32>(i.o[1]), b = F == NOT ? 0 : *w.at<u32>(i.o[2]);
  if (i.a) a = ~a;
  if (i.b) b = ~b;
  const u32 r = F == AND ? a & b : F == OR ? a | b : F == XOR ? a ^ b : ~a;
  u32& d = *w.at<u32>(i.o[0]);
  d = (d & ~m) | (r & m);
}
Handler of_predicates(Form& f) {
  f.unary(0);
  f.out.a = f.in(1).negated;
  if (f.op == "not") return predicate_logic<NOT>;
  f.out.o[2] = f.source(2, 0), f.out.b = f.in(2).negated;
  return f.op == "and" ? (Handler)predicate_logic<AND> : f.op == "or" ? (Handler)predicate_logic<OR> : (Handler)predicate_logic<XOR>;
}

Handler logic(Form& f) {
  if (f.type == "pred") return of_predicates(f);
  f.binary(f.bytes);
  return f.op == "and" ? WRAPPING(f.type, a & b) : f.op == "or" ? WRAPPING(f.type, a | b) : WRAPPING(f.type, a ^ b);
}
Handler complement(Form& f) {
  if (f.type == "pred") return of_predicates(f);
  f.unary(f.bytes);
  return f.bytes == 2 ? (Handler)UN(u16, u16(~a)) : f.bytes == 4 ? (Handler)UN(u32, ~a) : (Handler)UN(u64, ~a);
}
Handler cnot(Form& f) {
  f.unary(f.bytes);
  return f.bytes == 4 ? (Handler)UN(u32, a == 0) : nullptr;
}

// lop3: the table's bit 4a + 2b + c is the result for bits a, b, c.
inline u32 by_table(u32 a, u32 b, u32 c, u32 table) {
  u32 d = 0;
  for (int row = 0; row < 8; row++)
    if (table >> row & 1) d |= (row & 4 ? a : ~a) & (row & 2 ? b : ~b) & (row & 1 ? c : ~c);
  return d;
}
void lop3_lanes(Warp& w, I i, u32 m) {
  u32* d = w.at<u32>(i.o[0]);
  const u32 *a = w.at<u32>(i.o[1]), *b = w.at<u32>(i.o[2]), *c = w.at<u32>(i.o[3]);
  const u32 table = i.a, and_or = 0xea, parity = 0x96;  // the two that are met most, quickly
  if (table == and_or) { EACH(d[l] = (a[l] & b[l]) | c[l]) return; }
  if (table == parity) { EACH(d[l] = a[l] ^ b[l] ^ c[l]) return; }
  EACH(d[l] = by_table(a[l], b[l], c[l], table))
}
Handler lop3(Form& f) {
  if (f.has("BoolOp")) return nullptr;
  f.ternary(4);
  f.out.a = f.in(4).bits;
  return lop3_lanes;
}

// Shifts by more than the width give zero, or the sign.
#define SHIFT(T, ...) op2<T, T, u32, [](T a, u32 b) -> T { return (__VA_ARGS__); }>
Handler shift(Form& f) {
  f.unary(f.bytes);
  f.out.o[2] = f.source(2, 4);
  if (f.op == "shl")
    return f.bytes == 2   ? (Handler)SHIFT(u16, b > 15 ? 0 : u16(a << b))
           : f.bytes == 4 ? (Handler)SHIFT(u32, b > 31 ? 0 : a << b)
                          : (Handler)SHIFT(u64, b > 63 ? 0 : a << b);
  if (f.type[0] == 's')
    return f.bytes == 2   ? (Handler)SHIFT(s16, s16(a >> std::min(b, 15u)))
           : f.bytes == 4 ? (Handler)SHIFT(s32, a >> std::min(b, 31u))
                          : (Handler)SHIFT(s64, a >> std::min(b, 63u));
  return f.bytes == 2   ? (Handler)SHIFT(u16, b > 15 ? 0 : u16(a >> b))
         : f.bytes == 4 ? (Handler)SHIFT(u32, b > 31 ? 0 : a >> b)
                        : (Handler)SHIFT(u64, b > 63 ? 0 : a >> b);
}

// shf: of the 64 bits b:a the upper word, shifted left, or the lower, shifted right.
Handler funnel_shift(Form& f) {
  f.ternary(4);
  const bool wrap = f.has("wrap");
  if (f.has("l"))
    return wrap ? (Handler)TER(u32, u32((u64(b) << 32 | a) << (c & 31) >> 32))
                : (Handler)TER(u32, c > 31 ? a : u32((u64(b) << 32 | a) << c >> 32));
  return wrap ? (Handler)TER(u32, u32((u64(b) << 32 | a) >> (c & 31)))
              : (Handler)TER(u32, u32((u64(b) << 32 | a) >> std::min(c, 32u)));
}

// prmt: byte k of the result is byte selector[4k..4k+2] of b:a, or eight times its sign if bit 4k+3 is set.
inline u32 permute(u32 a, u32 b, u32 selector) {
  const u64 bytes = u64(b) << 32 | a;
  u32 d = 0;
  for (int k = 0; k < 4; k++) {
    const u32 s = selector >> (4 * k);
    u32 byte = bytes >> (8 * (s & 7)) & 255;
    if (s & 8) byte = byte & 128 ? 255 : 0;
    d |= byte << (8 * k);
  }
  return d;
}
Handler prmt(Form& f) {
  if (f.type != "b32") return nullptr;  // with a mode: .f4e, .rc8
  f.ternary(4);
  return TER(u32, permute(a, b, c));
}

}  // namespace

const Family LOGIC = {{"and", logic}, {"or", logic},  {"xor", logic}, {"not", complement},   {"cnot", cnot},
                      {"lop3", lop3}, {"shl", shift}, {"shr", shift}, {"shf", funnel_shift}, {"prmt", prmt}};

}  // namespace softgpu
