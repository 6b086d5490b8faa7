"""GPTQ: a checkpoint of float weights in, a quantized one out, proven as it was solved."""
