"""A whole decoder-only transformer."""
