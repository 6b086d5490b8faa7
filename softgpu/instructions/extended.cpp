// PTX ISA, "Extended-Precision Integer Arithmetic Instructions": sums that pass a carry on in CC.CF.
#include "lanes.h"

namespace softgpu {
namespace {

using Wide = unsigned __int128;

template <class T, bool IN, bool OUT, bool MINUS>
void add_lanes(Warp& w, I i, u32 m) {
  T* d = w.at<T>(i.o[0]);
  const T *a = w.at<T>(i.o[1]), *b = w.at<T>(i.o[2]);
  u32 carry = w.carry;
  EACH({
    const Wide in = IN ? w.carry >> l & 1 : 0;
    const Wide r = MINUS ? Wide(a[l]) - b[l] - in : Wide(a[l]) + b[l] + in;
    d[l] = T(r);
    carry = (carry & ~(1u << l)) | u32(r >> (8 * sizeof(T)) & 1) << l;
  })
  if (OUT) w.carry = carry;
}

template <class T, bool HIGH, bool IN, bool OUT>
void mad_lanes(Warp& w, I i, u32 m) {
  T* d = w.at<T>(i.o[0]);
  const T *a = w.at<T>(i.o[1]), *b = w.at<T>(i.o[2]), *c = w.at<T>(i.o[3]);
  u32 carry = w.carry;
  EACH({
    const Wide p = Wide(a[l]) * b[l];
    const Wide r = Wide(T(HIGH ? p >> (8 * sizeof(T)) : p)) + c[l] + (IN ? w.carry >> l & 1 : 0);
    d[l] = T(r);
    carry = (carry & ~(1u << l)) | u32(r >> (8 * sizeof(T)) & 1) << l;
  })
  if (OUT) w.carry = carry;
}

template <class T, bool MINUS>
Handler choose_add(bool takes, bool gives) {
  return takes ? (gives ? (Handler)add_lanes<T, true, true, MINUS> : (Handler)add_lanes<T, true, false, MINUS>)
               : (Handler)add_lanes<T, false, true, MINUS>;
}
template <class T, bool HIGH>
Handler choose_mad(bool takes, bool gives) {
  return takes ? (gives ? (Handler)mad_lanes<T, HIGH, true, true> : (Handler)mad_lanes<T, HIGH, true, false>)
               : (Handler)mad_lanes<T, HIGH, false, true>;
}

// add.cc, addc, sub.cc, subc
Handler add(Form& f) {
  const bool takes = f.op.size() == 4, gives = f.has("cc"), minus = f.op[0] == 's';
  if (!takes && !gives) return nullptr;
  f.binary(f.bytes);
  if (f.bytes == 4) return minus ? choose_add<u32, true>(takes, gives) : choose_add<u32, false>(takes, gives);
  if (f.bytes == 8) return minus ? choose_add<u64, true>(takes, gives) : choose_add<u64, false>(takes, gives);
  return nullptr;
}

// mad.cc, madc; of signed numbers only the low half is the same
Handler mad(Form& f) {
  const bool takes = f.op == "madc", gives = f.has("cc"), high = f.has("hi");
  if ((!takes && !gives) || (high && f.type[0] == 's')) return nullptr;
  f.ternary(f.bytes);
  if (f.bytes == 4) return high ? choose_mad<u32, true>(takes, gives) : choose_mad<u32, false>(takes, gives);
  if (f.bytes == 8) return high ? choose_mad<u64, true>(takes, gives) : choose_mad<u64, false>(takes, gives);
  return nullptr;
}

}  // namespace

const Family EXTENDED = {{"add", add}, {"addc", add}, {"sub", add}, {"subc", add}, {"mad", mad}, {"madc", mad}};

}  // namespace softgpu
