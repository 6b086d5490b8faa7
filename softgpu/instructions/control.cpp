// PTX ISA, "Control Flow Instructions": bra, brx.idx, ret, exit; call of the two functions that NVRTC leaves.
#include "lanes.h"

namespace softgpu {
namespace {

Handler bra(Form& f) {
  const auto label = f.decoder.function.labels.find(f.in(0).name);
  if (label == f.decoder.function.labels.end()) throw ParseError("unknown label " + f.in(0).name);
  f.out.flow = Flow::Branch;
  f.out.target = label->second;
  return nullptr;
}

Handler brx(Form& f) {
  auto places = std::make_unique<std::vector<u32>>();
  for (auto& name : f.decoder.function.branch_targets.at(f.in(1).name)) places->push_back(f.decoder.function.labels.at(name));
  f.out.flow = Flow::BranchTable;
  f.out.o[0] = f.source(0, 4);
  f.out.table = places.get();
  f.decoder.program.tables.push_back(std::move(places));
  return nullptr;
}

Handler leave(Form& f) {
  f.out.flow = Flow::Exit;
  return nullptr;
}

[[noreturn]] void failed_assertion(Warp& w, I i, u32 m) { fault(w, i, __builtin_ctz(m), ASSERT, "a device-side assertion failed"); }
Handler call(Form& f) {
  for (auto& o : f.statement.operands) {
    if (o.name == "__assertfail") return (Handler)failed_assertion;
    if (o.name == "vprintf") return nothing;
  }
  return nullptr;
}

}  // namespace

const Family CONTROL = {{"bra", bra}, {"brx", brx}, {"ret", leave}, {"exit", leave}, {"call", call}};

}  // namespace softgpu
