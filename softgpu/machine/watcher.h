// Who looks on while kernels run: the checker of races, the counter of accesses.
#pragma once
#include "warp.h"

namespace softgpu {

struct Watcher {
  virtual ~Watcher() = default;
  virtual void begins(Block&) {}
  virtual void ends(Block&) {}
  virtual void executes(Warp&, const Instruction&, u32 /*mask*/) {}
  // host: where each lane's bytes lie, in the memory of the host
  virtual void accesses(Warp&, const Instruction&, u32 /*mask*/, u8* const* /*host*/, u32 /*bytes*/, const Access&) {}
  virtual void issues(Warp&, const Instruction&, u32 /*mask*/, u8* const* /*target*/, u32 /*bytes*/) {}  // cp.async
  virtual void lands(Warp&, u32 /*lane*/, u8* /*target*/, u32 /*bytes*/) {}
  virtual void prefetches(Warp&, u32 /*mask*/, u8* const* /*host*/, const u32* /*bytes*/) {}
  virtual void fences(Warp&, u32 /*mask*/, Scope) {}
  virtual void waits(Warp&, u32 /*mask*/) {}                                                // griddepcontrol.wait
  virtual void meets(Warp&, const Instruction&, u32 /*mask*/) {}                            // bar.warp.sync
  virtual void arrives(Warp&, const Instruction&, u32 /*mask*/, Barrier&, bool /*counts all*/) {}
  virtual void releases(Block&, Barrier&) {}
  virtual void exits(Warp&, u32 /*mask*/) {}
  virtual void forbids(Warp&, u32 /*place in shared memory*/, u32 /*bytes*/) {}  // softgpu.red_zone
};

}  // namespace softgpu
