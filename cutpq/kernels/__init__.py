"""cuda_src compiled for the device at hand, kept, and launched with checked arguments."""
