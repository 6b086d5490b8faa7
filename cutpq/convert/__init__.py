"""A checkpoint rewritten in its own format, and the proof that it is the same."""
