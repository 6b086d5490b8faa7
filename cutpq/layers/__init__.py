"""Tensor-parallel layers over act-ordered weights: the five schemes, and which one to take."""
