"""Checked NumPy-style operations, each a formula and a kernel."""
