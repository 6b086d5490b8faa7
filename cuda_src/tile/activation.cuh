// Activation functions of an MLP, in float32.
#pragma once
#include "../target.cuh"

enum Activation { NONE, SILU, GELU, GELU_TANH };  // numbers of activation_code in Python

DEVICE float sigmoid(float v) { return 1.0f / (1.0f + __expf(-v)); }

DEVICE float activate(float v) {
  if constexpr (ACTIVATION == SILU) return v * sigmoid(v);
  if constexpr (ACTIVATION == GELU) return 0.5f * v * (1.0f + erff(v * 0.70710678f));  // sqrt(1/2)
  // (1 + tanh(u)) / 2 is sigmoid(2 u); 2 sqrt(2/pi) = 1.5957691
  if constexpr (ACTIVATION == GELU_TANH) return v * sigmoid(1.5957691f * (v + 0.044715f * v * v * v));
  return v;
}
