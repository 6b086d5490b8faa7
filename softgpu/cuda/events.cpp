// Events: the host's time at which a stream came to them.
#include "runtime.h"

using namespace softgpu;

namespace {

struct State {  // of an event, as last recorded
  std::mutex lock;
  std::condition_variable changed;
  u64 recorded = 0;
  bool done = false;
};
struct Event {
  std::shared_ptr<State> state;
  bool timing = true;
};
}  // namespace

extern "C" {

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned flags) {
  *e = (cudaEvent_t) new Event{nullptr, !(flags & cudaEventDisableTiming)};
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* e) { return cudaEventCreateWithFlags(e, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t e) { return delete (Event*)e, cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
  auto state = std::make_shared<State>();
  ((Event*)e)->state = state;
  return on(s, [state] {
    std::lock_guard guard(state->lock);
    state->recorded = nanoseconds();
    state->done = true;
    state->changed.notify_all();
    return 0;
  });
}
cudaError_t cudaEventQuery(cudaEvent_t e) {
  auto state = ((Event*)e)->state;
  if (!state) return cudaSuccess;
  std::lock_guard guard(state->lock);
  return state->done ? cudaSuccess : cudaErrorNotReady;
}
static int wait_for_event(const std::shared_ptr<State>& state) {
  if (!state) return 0;
  std::unique_lock guard(state->lock);
  state->changed.wait(guard, [&] { return state->done; });
  return 0;
}
cudaError_t cudaEventSynchronize(cudaEvent_t e) { return result(wait_for_event(((Event*)e)->state)); }
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned) {
  auto state = ((Event*)e)->state;
  return on(s, [state] { return wait_for_event(state); });
}
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t a, cudaEvent_t b) {
  auto from = ((Event*)a)->state, to = ((Event*)b)->state;
  if (!from || !to) return result(cudaErrorInvalidResourceHandle);
  if (!from->done || !to->done) return cudaErrorNotReady;
  *ms = (double(to->recorded) - double(from->recorded)) / 1e6;
  return cudaSuccess;
}
}  // extern "C"
