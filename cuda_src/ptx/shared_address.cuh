// 32-bit addresses in the shared state space, which cp.async and ldmatrix take.
#pragma once
#include "../target.cuh"

// cvta.to.shared: the shared address of a generic pointer.
DEVICE u32 shared_address(const void* p) {
  return static_cast<u32>(__cvta_generic_to_shared(p));
}
