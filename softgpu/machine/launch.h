// Running kernels: one, or several side by side as on several GPUs that see each other's memory.
#pragma once
#include "program.h"

namespace softgpu {

struct Dim {
  u32 x = 1, y = 1, z = 1;
};

struct Grid {
  const Program* program = nullptr;
  Dim grid, block;
  u32 dynamic_shared = 0;
  u32 red_zones = 0;  // bytes of shared memory behind that, which a kernel may only forbid
  std::vector<u8> parameters;
  int device = 0;
  int after = -1;      // the grid that has to end before, on the same device
  bool early = false;  // programmatic dependent launch: a GPU may start it before that end

  u64 blocks() const { return u64(grid.x) * grid.y * grid.z; }
  u32 threads() const { return block.x * block.y * block.z; }
};

struct Watcher;

struct Options {
  u32 seed = 0;             // order of blocks and warps: 0 ascending, 1 descending, else random
  u64 most_resident = 0;    // blocks alive at a time; 0: as many as the device would hold
  bool alone = false;       // nobody else changes memory: a wait that only others could end is an error
  int timeout_s = 0;        // a launch that runs longer hangs; 0: no limit
  int arch = 90;            // whose tensor cores add
  bool own_timer = false;   // %globaltimer counts its readings, a microsecond each, instead of time
  Watcher* watcher = nullptr;
};

struct Fault : std::runtime_error {
  int code;
  Fault(int code, const std::string& what) : std::runtime_error(what), code(code) {}
};

// Runs all blocks of the grids from number `first` on; those before have ended. Fault if a kernel does what it may not.
void launch(const std::vector<Grid>& grids, const Options& options, size_t first = 0);

}  // namespace softgpu
