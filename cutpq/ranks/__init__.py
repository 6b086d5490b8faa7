"""Processes or threads that make the same calls: collectives, sums, and what happens when one does not."""
