// PTX ISA, "Miscellaneous Instructions": trap, brkpt, nanosleep, pmevent, setmaxnreg; and griddepcontrol.
#include "lanes.h"

namespace softgpu {
namespace {

[[noreturn]] void trapped(Warp& w, I i, u32 m) { fault(w, i, __builtin_ctz(m), ASSERT, "trap"); }
Handler trap(Form&) { return (Handler)trapped; }
Handler nanosleep(Form& f) {
  f.out.flow = Flow::Yield;
  return nullptr;
}
Handler no_effect(Form&) { return nothing; }

}  // namespace

const Family MISCELLANEOUS = {{"trap", trap},         {"brkpt", trap},           {"nanosleep", nanosleep},
                              {"pmevent", no_effect}, {"setmaxnreg", no_effect}, {"griddepcontrol", no_effect}};

}  // namespace softgpu
