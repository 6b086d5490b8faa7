// The sixteen barriers of a block, of which __syncthreads is number 0, for tests of the CPU runtime: no kernel uses others.
#pragma once
#include "target.cuh"

// bar.sync: waits until `threads` threads of the block have reached barrier `id`.
DEVICE void bar_sync(int id, int threads CALL_SITE) { simt::barrier(id, threads, true, line); }

// bar.arrive: counts this thread at barrier `id` without waiting.
DEVICE void bar_arrive(int id, int threads CALL_SITE) { simt::barrier(id, threads, false, line); }
