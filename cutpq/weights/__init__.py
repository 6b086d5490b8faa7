"""A weight as a value: what it is, its order of rows, its shards, and how kernels want it packed."""
