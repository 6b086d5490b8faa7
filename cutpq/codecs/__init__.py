"""Block codecs: arrays to a few bytes and back, by formulas and by kernels."""
