// Fibers: every CUDA thread of a launch runs on a stack of its own, and all of them on one thread of the system.
#pragma once

namespace simt {

// Saves the running context in *save and continues the one that `to` names.
extern "C" void simt_switch(void** save, void* to);

// A context that will call `entry` on the stack that ends at `top` when it is switched to for the first time.
void* new_fiber(char* top, void (*entry)());

}  // namespace simt
