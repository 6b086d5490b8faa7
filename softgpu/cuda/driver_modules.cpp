// The driver API of modules: PTX is loaded, a cubin is refused.
#include <cuda.h>

#include <atomic>
#include <cstdio>
#include <fstream>
#include <sstream>

#include "../machine/program.h"
#include "runtime.h"

using namespace softgpu;

namespace {

std::mutex lock;

CUresult load_text(CUmodule* module, const std::string& text) {
  if (text.compare(0, 4, "\177ELF") == 0 || text.find(".version") == std::string::npos) {
    std::fprintf(stderr, "softgpu: a module that is no PTX: it was compiled without softgpu's NVRTC\n");
    return CUDA_ERROR_NO_BINARY_FOR_GPU;
  }
  if (!settings().dump.empty()) {
    static std::atomic<int> number;
    std::ofstream(settings().dump + "/module-" + std::to_string(number++) + ".ptx") << text;
  }
  try {
    *module = (CUmodule)load(text).release();
    return CUDA_SUCCESS;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "softgpu: %s\n", e.what());
    return CUDA_ERROR_INVALID_PTX;
  }
}

}  // namespace

extern "C" {

CUresult cuModuleLoad(CUmodule* m, const char* path) {
  std::ifstream file(path);
  if (!file) return CUDA_ERROR_FILE_NOT_FOUND;
  std::stringstream text;
  text << file.rdbuf();
  return load_text(m, text.str().c_str());
}
CUresult cuModuleLoadData(CUmodule* m, const void* image) { return load_text(m, std::string((const char*)image)); }
CUresult cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }  // what was launched may still be named in messages
CUresult cuModuleGetFunction(CUfunction* f, CUmodule m, const char* name) {
  std::lock_guard guard(lock);
  try {
    Program* p = program(*(Loaded*)m, name);
    if (!p) return CUDA_ERROR_NOT_FOUND;
    *f = (CUfunction)p;
    return CUDA_SUCCESS;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "softgpu: %s: %s\n", name, e.what());
    return CUDA_ERROR_INVALID_PTX;
  }
}
CUresult cuModuleGetGlobal(CUdeviceptr* p, size_t* n, CUmodule m, const char* name) {
  auto& variables = ((Loaded*)m)->module->variables;
  auto found = variables.find(name);
  if (found == variables.end()) return CUDA_ERROR_NOT_FOUND;
  if (p) *p = found->second.address;
  if (n) *n = found->second.size;
  return CUDA_SUCCESS;
}

}  // extern "C"
