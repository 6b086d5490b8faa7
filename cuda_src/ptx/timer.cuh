// A clock of the device, for time limits on spinning.
#pragma once
#include "../target.cuh"

// %globaltimer: nanoseconds, updated about once a microsecond.
DEVICE u64 timer_ns() {
  u64 ns;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(ns));
  return ns;
}
