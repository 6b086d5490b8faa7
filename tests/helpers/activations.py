"""The activations of an MLP in float64, written out once more."""

import math

import numpy as np

EXACT = {
    "silu": lambda v: v / (1 + np.exp(-v)),
    "gelu": lambda v: v / 2 * (1 + np.vectorize(math.erf)(v / 2**0.5)),
    "gelu_tanh": lambda v: v / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (v + 0.044715 * v**3))),
}
