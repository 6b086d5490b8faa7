"""What a call costs on a named machine, in pure functions."""
