// What the files of the runtime API share.
#pragma once
#include <cuda_runtime_api.h>

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "../machine/memory.h"
#include "../machine/settings.h"

namespace softgpu {

// Work on a stream that is being captured is kept instead of done. Returns whether it was kept.
bool captured(void* stream, std::function<int()> work);
// Done by the stream's thread, or at once for a default stream: then its error is returned.
int submit(void* stream, std::function<int()> work);
// Either of them, as a call of the runtime API does it.
cudaError_t on(void* stream, std::function<int()> work);
// What is launched next on this thread's stream cannot overlap with what was launched before.
void end_chain();
// Keeps an error for cudaGetLastError.
cudaError_t result(int code);

int attribute(cudaDeviceAttr a);  // of every device

bool is_capturing(void* stream);
bool capturing_anywhere();

// A thread that does what it is given. The first error stays until somebody waits.
struct Stream {
  unsigned flags = 0;
  int priority = 0, device = 0;
  std::mutex lock;
  std::condition_variable changed;
  std::deque<std::function<int()>> queue;
  u64 given = 0, done = 0;
  int error = 0;
  bool ends = false;

  u64 push(std::function<int()> work) {
    std::lock_guard guard(lock);
    queue.push_back(std::move(work));
    changed.notify_all();
    return ++given;
  }
  int wait(u64 ticket) {
    std::unique_lock guard(lock);
    changed.wait(guard, [&] { return done >= ticket; });
    return std::exchange(error, 0);
  }
  u64 last() {
    std::lock_guard guard(lock);
    return given;
  }
  void wait_quietly(u64 ticket) {  // leaves the error to the host
    std::unique_lock guard(lock);
    changed.wait(guard, [&] { return done >= ticket; });
  }
  int drain() { return wait(last()); }
  bool idle() {
    std::lock_guard guard(lock);
    return done >= given;
  }
  void run() {
    for (;;) {
      std::function<int()> work;
      {
        std::unique_lock guard(lock);
        changed.wait(guard, [&] { return ends || !queue.empty(); });
        if (queue.empty()) break;
        work = std::move(queue.front());
        queue.pop_front();
      }
      const int code = work();
      std::lock_guard guard(lock);
      done++;
      if (code && !error) error = code;
      changed.notify_all();
    }
  }
};

// The thread of a stream; null for a default stream whose work is done at once.
Stream* created(void* stream);
Stream* default_stream();  // where it is a thread: SOFTGPU_ASYNC
// What the default stream waits for (the streams that are not "non-blocking"), or the whole device.
int wait_for(bool blocking_only);

}  // namespace softgpu
