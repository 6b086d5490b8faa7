"""Calibration tokens for small models, and what a run wrote."""

import numpy as np


def calibration(vocabulary=101, sequences=16, length=24, seed=0):
    """Random tokens, (sequences, length)."""
    print(f"seed {seed}")
    return np.random.default_rng(seed).integers(0, vocabulary, (sequences, length))


def files(folder):
    """Every file of a folder: its bytes by its name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
