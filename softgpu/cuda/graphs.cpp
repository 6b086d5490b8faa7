// Graphs: the work that was captured, done again at every launch.
#include <map>

#include "runtime.h"

namespace softgpu {
namespace {

using Work = std::vector<std::function<int()>>;
struct Capture {
  cudaStreamCaptureMode mode;
  Work work;
};

std::mutex lock;
std::map<void*, Capture>& captures() {
  static auto* made = new std::map<void*, Capture>;
  return *made;
}
}  // namespace

bool capturing_anywhere() {
  std::lock_guard guard(lock);
  for (auto& [s, c] : captures())
    if (c.mode != cudaStreamCaptureModeRelaxed) return true;
  return false;
}
bool is_capturing(void* s) {
  std::lock_guard guard(lock);
  return captures().count(s);
}

bool captured(void* stream, std::function<int()> work) {
  std::lock_guard guard(lock);
  auto found = captures().find(stream);
  if (found == captures().end()) return false;
  found->second.work.push_back(std::move(work));
  return true;
}
}  // namespace softgpu

using namespace softgpu;

extern "C" {

cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode mode) {
  if (!s) return result(cudaErrorStreamCaptureUnsupported);
  std::lock_guard guard(lock);
  captures()[s] = {mode, {}};
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t* graph) {
  std::lock_guard guard(lock);
  auto found = captures().find(s);
  if (found == captures().end()) return result(cudaErrorIllegalState);
  *graph = (cudaGraph_t) new Work(std::move(found->second.work));
  captures().erase(found);
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t s, cudaStreamCaptureStatus* v) {
  *v = is_capturing(s) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* e, cudaGraph_t g, unsigned long long) {
  *e = (cudaGraphExec_t) new Work(*(Work*)g);
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s) {
  return on(s, [work = *(Work*)e] {
    for (auto& each : work)
      if (int code = each()) return code;
    return 0;
  });
}
cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaGraphDestroy(cudaGraph_t g) { return delete (Work*)g, cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t e) { return delete (Work*)e, cudaSuccess; }
cudaError_t cudaGraphDebugDotPrint(cudaGraph_t, const char*, unsigned) { return result(cudaErrorNotSupported); }

}  // extern "C"
