// Streams: what is given to one that was created is done by a thread of its own, in order; what is given to a default
// stream is done at once.
#include <set>
#include <thread>
#include <utility>

#include "runtime.h"

namespace softgpu {
namespace {

std::mutex streams_lock;
std::set<std::shared_ptr<Stream>>& streams() {
  static auto* made = new std::set<std::shared_ptr<Stream>>;
  return *made;
}
std::vector<std::shared_ptr<Stream>> those(bool blocking_only) {
  std::lock_guard guard(streams_lock);
  std::vector<std::shared_ptr<Stream>> out;
  for (auto& s : streams())
    if (!blocking_only || !(s->flags & cudaStreamNonBlocking)) out.push_back(s);
  return out;
}
}  // namespace

Stream* default_stream() {
  static Stream* const made = [] {
    auto* s = new Stream;
    std::thread([s] { s->run(); }).detach();
    return s;
  }();
  return made;
}
Stream* created(void* s) { return (u64)s > 2 ? (Stream*)s : settings().async_default ? default_stream() : nullptr; }
int wait_for(bool blocking_only) {
  int code = settings().async_default ? default_stream()->drain() : 0;
  for (auto& s : those(blocking_only)) {
    const int error = s->drain();
    if (!code) code = error;
  }
  return code;
}

int submit(void* stream, std::function<int()> work) {
  if (Stream* s = created(stream)) {
    std::vector<std::pair<std::shared_ptr<Stream>, u64>> before;  // the default stream and those that block go in order
    u64 ticket = 0;
    if (settings().async_default && s != default_stream() && !(s->flags & cudaStreamNonBlocking)) ticket = default_stream()->last();
    if (settings().async_default && s == default_stream())
      for (auto& each : those(true)) before.push_back({each, each->last()});
    s->push([ticket, before, work = std::move(work)] {
      if (ticket) default_stream()->wait_quietly(ticket);
      for (auto& [other, last] : before) other->wait_quietly(last);
      return work();
    });
    return 0;
  }
  if (int code = wait_for(true)) return code;
  return work();
}
}  // namespace softgpu

using namespace softgpu;

extern "C" {

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned flags, int priority) {
  auto made = std::make_shared<Stream>();
  made->flags = flags, made->priority = priority, made->device = current_device();
  *s = (cudaStream_t)made.get();
  std::lock_guard guard(streams_lock);
  streams().insert(made);
  std::thread([made] { made->run(); }).detach();
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned flags) { return cudaStreamCreateWithPriority(s, flags, 0); }
cudaError_t cudaStreamCreate(cudaStream_t* s) { return cudaStreamCreateWithPriority(s, 0, 0); }
cudaError_t cudaStreamGetFlags(cudaStream_t s, unsigned* v) { return *v = (u64)s > 2 ? ((Stream*)s)->flags : 0, cudaSuccess; }
cudaError_t cudaStreamGetPriority(cudaStream_t s, int* v) { return *v = (u64)s > 2 ? ((Stream*)s)->priority : 0, cudaSuccess; }
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  Stream* s = created(stream);
  if (!s) return result(cudaErrorInvalidResourceHandle);
  std::lock_guard guard(streams_lock);
  for (auto& each : streams())
    if (each.get() == s) {
      auto kept = each;
      {
        std::lock_guard inner(s->lock);
        s->ends = true;
        s->changed.notify_all();
      }
      streams().erase(kept);
      break;
    }
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t s) {
  if (is_capturing(s)) return result(cudaErrorStreamCaptureUnsupported);
  return result((u64)s > 2 ? created(s)->drain() : wait_for(true));
}
cudaError_t cudaStreamQuery(cudaStream_t s) {
  if (is_capturing(s)) return result(cudaErrorStreamCaptureUnsupported);
  return !created(s) || created(s)->idle() ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaStreamAddCallback(cudaStream_t s, cudaStreamCallback_t f, void* data, unsigned) {
  return on(s, [=] { return f(s, cudaSuccess, data), 0; });
}
cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t f, void* data) {
  return on(s, [=] { return f(data), 0; });
}
}  // extern "C"
