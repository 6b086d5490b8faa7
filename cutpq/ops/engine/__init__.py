"""What NumPy arrays are computed with: NumPy's BLAS and float32, on weights that are prepared once."""
