"""What a call should take on a machine that is not at hand, from constants and machine code."""
