"""What the benches share: flags, tables, clocks, and which BLAS runs."""
