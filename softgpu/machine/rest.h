// What a thread does between two looks at something that another stream or process is to change.
#pragma once
#include <sched.h>
#include <time.h>

#include <algorithm>

#include "number.h"

namespace softgpu {

// Gives its core away, after 20 looks in vain for longer and longer: 10 us to 1 ms. The ranks of a test are more than the
// cores, and one that looks without a pause takes the time of the one that it waits for.
inline void rest(u64 looks) {
  if (looks < 20) {
    sched_yield();
    return;
  }
  const timespec pause{0, long(std::min<u64>(looks, 2000) * 500)};
  nanosleep(&pause, nullptr);
}

}  // namespace softgpu
