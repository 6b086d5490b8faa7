// The driver API of functions: launches, attributes, occupancy.
#include <cuda.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>

#include "../machine/counter.h"
#include "../races/checker.h"
#include "runtime.h"

using namespace softgpu;

namespace {

int max_shared() { return (settings().arch >= 90 ? 227 : settings().arch == 80 ? 163 : 99) << 10; }

// Why CUDA would not launch this, or null.
const char* objection(const Grid& g) {
  const Program& p = *g.program;
  const u64 threads = u64(g.block.x) * g.block.y * g.block.z;
  if (!g.blocks() || !threads || g.grid.y > 65535 || g.grid.z > 65535 || g.grid.x > 2147483647u) return "impossible sizes";
  if (threads > 1024 || g.block.z > 64) return "too many threads";
  if (p.max_threads && threads > p.max_threads) return "more threads than its launch bounds";
  if (g.dynamic_shared > p.max_dynamic_shared) return "more dynamic shared memory than the function allows";
  return nullptr;
}

std::vector<u8> parameters_of(const Program& p, void** arguments, void** extra) {
  std::vector<u8> bytes(p.parameter_bytes);
  if (arguments) {
    for (size_t k = 0; k < p.parameters.size(); k++) std::memcpy(bytes.data() + p.parameters[k].address, arguments[k], p.parameters[k].size);
  } else if (extra) {  // CU_LAUNCH_PARAM_BUFFER_POINTER, and its size
    std::memcpy(bytes.data(), extra[1], std::min<size_t>(*static_cast<size_t*>(extra[3]), bytes.size()));
  }
  return bytes;
}

void write_line(const std::string& line) {
  static std::mutex lock;
  std::lock_guard guard(lock);
  std::ofstream(settings().count, std::ios::app) << line << std::endl;
}

// A launch, and those behind it of which each may start before the one before it ends: checked together. A stream is a
// thread, so that each has its own.
struct Chain {
  std::vector<Grid> grids;
  std::unique_ptr<Watcher> checker;
};
thread_local Chain chain;

int run_now(Grid grid) {
  if (!grid.early) chain = {};
  grid.early = !chain.grids.empty();
  grid.after = int(chain.grids.size()) - 1;
  chain.grids.push_back(grid);
  try {
    Options options;
    options.seed = settings().seed, options.arch = settings().arch;
    Counter counter;
    if (settings().check_races && !chain.checker) chain.checker = new_checker(chain.grids, true);
    options.watcher = chain.checker ? chain.checker.get() : settings().count.empty() ? nullptr : &counter;
    launch(chain.grids, options, grid.after + 1);
    if (options.watcher == &counter) write_line(counter.json(grid));
    return 0;
  } catch (const Fault& fault) {
    chain = {};
    std::fprintf(stderr, "%s\n", fault.what());
    return fault.code;
  }
}

CUresult launch_on(CUstream stream, Grid grid, void** arguments, void** extra) {
  const Program& p = *grid.program;
  if (const char* why = objection(grid)) {
    std::fprintf(stderr, "softgpu: launch of %s refused: %s; grid (%u, %u, %u) block (%u, %u, %u) shared %u\n", p.name.c_str(), why, grid.grid.x,
                 grid.grid.y, grid.grid.z, grid.block.x, grid.block.y, grid.block.z, grid.dynamic_shared);
    return CUDA_ERROR_INVALID_VALUE;
  }
  grid.parameters = parameters_of(p, arguments, extra);
  const auto work = [grid = std::move(grid)] { return run_now(grid); };
  if (captured(stream, work)) return CUDA_SUCCESS;
  return CUresult(submit(stream, work));
}

}  // namespace

namespace softgpu {
void end_chain() { chain = {}; }
}  // namespace softgpu

extern "C" {

CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                        CUstream stream, void** arguments, void** extra) {
  return launch_on(stream, {(const Program*)f, {gx, gy, gz}, {bx, by, bz}, shared, 0, {}, current_device()}, arguments, extra);
}
// Of the attributes, the one of programmatic dependent launch.
CUresult cuLaunchKernelEx(const CUlaunchConfig* c, CUfunction f, void** arguments, void** extra) {
  Grid grid{(const Program*)f, {c->gridDimX, c->gridDimY, c->gridDimZ}, {c->blockDimX, c->blockDimY, c->blockDimZ}, c->sharedMemBytes, 0, {}, current_device()};
  for (unsigned n = 0; n < c->numAttrs; n++) {
    if (c->attrs[n].id != CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION || settings().arch < 90) {
      std::fprintf(stderr, "softgpu: launch of %s refused: attribute %d is not modelled for sm_%d\n", grid.program->name.c_str(), int(c->attrs[n].id), settings().arch);
      return CUDA_ERROR_NOT_SUPPORTED;
    }
    grid.early = c->attrs[n].value.programmaticStreamSerializationAllowed;
  }
  return launch_on(c->hStream, std::move(grid), arguments, extra);
}
CUresult cuLaunchCooperativeKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, CUstream s, void** arguments) {
  return cuLaunchKernel(f, gx, gy, gz, bx, by, bz, shared, s, arguments, nullptr);
}

CUresult cuFuncGetAttribute(int* v, CUfunction_attribute a, CUfunction f) {
  const Program& p = *(const Program*)f;
  switch (a) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *v = p.max_threads ? p.max_threads : 1024; break;
    case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES: *v = p.static_shared; break;
    case CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES: *v = p.local_bytes; break;
    case CU_FUNC_ATTRIBUTE_NUM_REGS: *v = 32; break;  // not known
    case CU_FUNC_ATTRIBUTE_PTX_VERSION: case CU_FUNC_ATTRIBUTE_BINARY_VERSION: *v = settings().arch; break;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: *v = p.max_dynamic_shared; break;
    case CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT: *v = -1; break;
    default: *v = 0;
  }
  return CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction f, CUfunction_attribute a, int v) {
  Program& p = *(Program*)f;
  if (a == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) {
    if (v < 0 || v + int(p.static_shared) > max_shared()) return CUDA_ERROR_INVALID_VALUE;
    p.max_dynamic_shared = v;
    return CUDA_SUCCESS;
  }
  if (a == CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT) return v < -1 || v > 100 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
  return CUDA_ERROR_INVALID_VALUE;
}
CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* n, CUfunction f, int threads, size_t shared) {
  const Program& p = *(const Program*)f;
  const int by_threads = 2048 / std::max(32, threads), by_shared = (max_shared() + 1024) / (p.static_shared + shared + 1024);
  *n = std::max(0, std::min({32, by_threads, int(by_shared)}));
  return CUDA_SUCCESS;
}
CUresult cuOccupancyMaxPotentialBlockSize(int* grid, int* block, CUfunction, CUoccupancyB2DSize, size_t, int) { return *grid = settings().sms, *block = 1024, CUDA_SUCCESS; }

}  // extern "C"
