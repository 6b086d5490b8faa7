// What Python calls, through ctypes: modules, memory, launches. cutpq/kernels/executor.py is the other side.
#include <algorithm>
#include <cstdio>
#include <memory>

#include "../races/checker.h"
#include "counter.h"
#include "memory.h"
#include "watcher.h"

using namespace softgpu;

namespace {

thread_local std::string error, counted;

constexpr u32 RED_ZONES = 4096;  // bytes for those of one block

template <class F>
auto guarded(F f) -> decltype(f()) {
  try {
    error.clear();
    return f();
  } catch (const std::exception& e) {
    error = e.what();
    return {};
  }
}

}  // namespace

extern "C" {

struct Description {
  const Program* program;
  void** arguments;
  u32 grid[3], block[3], dynamic_shared;
  s32 device, after, early;
};
struct LaunchOptions {
  s32 check, seed, most_resident, arch, timeout_s, count;
};

const char* softgpu_error() { return error.c_str(); }
// A line of JSON on the last launch that was counted.
const char* softgpu_counted() { return counted.c_str(); }

void* softgpu_load(const char* text) {
  return guarded([&]() -> void* { return load(text).release(); });
}
const Program* softgpu_kernel(void* module, const char* name) {
  return guarded([&] { return const_cast<const Program*>(program(*static_cast<Loaded*>(module), name)); });
}
// The number of parameters; the bytes of up to 64 are written.
int softgpu_parameters(const Program* p, u32* bytes) {
  for (size_t n = 0; n < std::min<size_t>(p->parameters.size(), 64); n++) bytes[n] = p->parameters[n].size;
  return p->parameters.size();
}
u32 softgpu_static_shared(const Program* p) { return p->static_shared; }

void* softgpu_malloc(u64 bytes) { return memory::allocate(bytes, Allocation::Managed, 0); }
void softgpu_free(void* p) { memory::release(p); }

// Runs kernels side by side. 0, or -1 and softgpu_error() says why.
int softgpu_launch(int count, const Description* descriptions, const LaunchOptions* wanted) {
  const int status = guarded([&]() -> int {
    std::vector<Grid> grids;
    for (int n = 0; n < count; n++) {
      const Description& d = descriptions[n];
      Grid g{d.program, {d.grid[0], d.grid[1], d.grid[2]}, {d.block[0], d.block[1], d.block[2]}, d.dynamic_shared, wanted->check ? RED_ZONES : 0, {}, d.device, d.after, d.early != 0};
      const u64 largest = 227 << 10;
      if (!g.blocks() || !g.threads() || g.threads() > 1024 || g.dynamic_shared + g.program->static_shared > largest)
        throw std::runtime_error("invalid launch of " + g.program->name + ": " + std::to_string(g.blocks()) + " blocks of " +
                                 std::to_string(g.threads()) + " threads, " + std::to_string(g.dynamic_shared) + " bytes of shared memory");
      g.parameters.resize(g.program->parameter_bytes);
      for (size_t k = 0; k < g.program->parameters.size(); k++)
        std::memcpy(g.parameters.data() + g.program->parameters[k].address, d.arguments[k], g.program->parameters[k].size);
      grids.push_back(std::move(g));
    }
    Options options;
    options.seed = wanted->seed, options.most_resident = wanted->most_resident;
    options.alone = true, options.own_timer = true, options.arch = wanted->arch;
    options.timeout_s = wanted->timeout_s;
    std::unique_ptr<Watcher> watcher;
    Counter* counter = nullptr;
    if (wanted->check) watcher = new_checker(grids);
    else if (wanted->count) watcher.reset(counter = new Counter);
    options.watcher = watcher.get();
    launch(grids, options);
    counted = counter ? counter->json(grids[0]) : "";
    return 1;
  });
  return status ? 0 : -1;
}

}  // extern "C"
