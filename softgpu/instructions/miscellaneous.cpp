// PTX ISA, "Miscellaneous Instructions": trap, brkpt, nanosleep, pmevent, setmaxnreg; and "Parallel Synchronization and
// Communication Instructions: griddepcontrol".
#include "../machine/watcher.h"
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

// Grids of a stream run one after the other here, so that neither wait nor launch_dependents takes time. Whoever watches
// learns of the wait, before which a grid that was launched early may rely on nothing that the grid before it did.
void wait_for_grids(Warp& w, I, u32 m) {
  if (Watcher* watcher = w.block->watcher()) watcher->waits(w, m);
}
Handler grid_dependency(Form& f) { return f.has("wait") ? wait_for_grids : f.has("launch_dependents") ? nothing : nullptr; }

// softgpu.red_zone address, bytes: no instruction of the PTX ISA. A kernel that is compiled for the race detector says with
// it that nobody may touch these bytes of shared memory.
void forbid(Warp& w, I i, u32 m) {
  Watcher* watcher = w.block->watcher();
  const int lane = __builtin_ctz(m);
  if (watcher) watcher->forbids(w, w.at<u32>(i.o[0])[lane] - SHARED_START, w.at<u32>(i.o[1])[lane]);
}
Handler red_zone(Form& f) {
  f.out.o[0] = f.source(0, 4), f.out.o[1] = f.source(1, 4);
  return f.has("red_zone") ? forbid : nullptr;
}

}  // namespace

const Family MISCELLANEOUS = {{"trap", trap},         {"brkpt", trap},           {"nanosleep", nanosleep}, {"pmevent", no_effect},
                              {"setmaxnreg", no_effect}, {"griddepcontrol", grid_dependency}, {"softgpu", red_zone}};

}  // namespace softgpu
