// Programmatic dependent launch (sm_90): a kernel that is launched with its attribute may start while the kernel before it
// in the stream still runs (cutpq/kernels/dependent_launch.py). Below sm_90 both functions compile to nothing.
//
// Rules for a kernel that is launched so:
// 1. All its threads call wait_for_earlier_kernels(). Until then a thread reads from global memory only what no kernel of
//    the chain writes (weights), and writes nothing there: outputs, workspaces and counters may still be in use.
// 2. It waits even if it needs nothing of the kernel before it. The end of a kernel stands for the ends of all before it
//    only as long as each waits for its predecessor.
// Any kernel may call let_next_kernel_start(), as early as it likes: it says nothing about memory. The next kernel's blocks
// then take what room the multiprocessors have left, once every block of this kernel has called it or has ended.
#pragma once
#include "../target.cuh"

// griddepcontrol.wait: waits until the kernels before this one have ended and their writes are visible; returns at once in
// a kernel that was launched without the attribute.
DEVICE void wait_for_earlier_kernels() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// griddepcontrol.launch_dependents; has no effect where the next kernel is launched without the attribute.
DEVICE void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
