// What Python calls, through ctypes.
#include <algorithm>
#include <cstdio>

#include "runtime.h"

namespace simt {

std::map<std::string, Export>& exports() {
  static std::map<std::string, Export> all;
  return all;
}

void export_kernel(const char* name, Thunk kernel, int count, const Parameter* parameters) {
  exports()[name] = {kernel, {parameters, parameters + count}};
}

}  // namespace simt

using namespace simt;

extern "C" {

struct LaunchDescription {
  const char* name;
  void** args;
  uint32_t grid[3], block[3], shared_bytes;
  int after;  // the launch that comes before it on its device, or -1
};

const char* simt_error() { return state.error; }

// Passes that ldmatrix took through shared memory since the process began, and those without a bank conflict.
void simt_ldmatrix_passes(long* taken, long* ideal) {
  *taken = state.ldmatrix_wavefronts, *ideal = state.ldmatrix_ideal;
}

// The number of parameters, or -1; up to 64 of them are written.
int simt_signature(const char* name, Parameter* parameters) {
  const auto it = exports().find(name);
  if (it == exports().end()) return -1;
  std::copy(it->second.parameters.begin(), it->second.parameters.end(), parameters);
  return int(it->second.parameters.size());
}

// Runs kernels side by side: several "devices" of a collective, or just one; on a device one after the other.
// 0, or -1 and simt_error() says why.
int simt_launch(int count, const LaunchDescription* descriptions, const Options* options) {
  std::vector<Launch> launches(count);
  uint32_t shared_bytes = 0;
  int blocks = 0;
  state.threads_per_block = 0;
  for (int i = 0; i < count; i++) {
    const auto& d = descriptions[i];
    const uint32_t *g = d.grid, *b = d.block;
    Launch& launch = launches[i];
    launch = {exports().at(d.name).kernel, d.args,         {g[0], g[1], g[2]},
              {b[0], b[1], b[2]},          d.shared_bytes, int(b[0] * b[1] * b[2]),
              int(g[0] * g[1] * g[2]),     blocks,         i,
              nullptr};
    launch.unfinished = launch.blocks;
    if (d.after >= 0) {
      launch.after = &launches[d.after];
      launch.after->next = &launch;
      launch.device = launch.after->device;
    }
    if (launch.threads < 1 || launch.threads > 1024 || launch.blocks < 1 || d.shared_bytes > 232448) {
      snprintf(state.error, sizeof state.error,
               "invalid launch: %d threads, %d blocks, %u bytes of shared memory", launch.threads,
               launch.blocks, d.shared_bytes);
      return -1;
    }
    shared_bytes = std::max(shared_bytes, d.shared_bytes);
    state.threads_per_block = std::max(state.threads_per_block, (launch.threads + 31) / 32 * 32);
    blocks += launch.blocks;
  }
  run_blocks(launches, shared_bytes, *options);
  return state.error[0] ? -1 : 0;
}

}  // extern "C"
