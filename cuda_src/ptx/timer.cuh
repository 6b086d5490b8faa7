// The time of a device, to end a wait that lasts too long.
#pragma once
#include "../target.cuh"

// %globaltimer: nanoseconds; in steps of a microsecond or so.
DEVICE u64 timer_ns() {
#ifdef CUTPQ_HOST
  return simt::device_timer();
#else
  u64 ns;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(ns));
  return ns;
#endif
}
