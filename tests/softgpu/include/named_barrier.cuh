// The sixteen barriers of a block; number 0 is that of __syncthreads. No kernel of cuda_src uses the others.
#pragma once
#include "target.cuh"

// bar.sync: wait until `threads` of the block are at barrier `id`.
DEVICE void bar_sync(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

// bar.arrive: be counted at barrier `id` and go on.
DEVICE void bar_arrive(int id, int threads) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
