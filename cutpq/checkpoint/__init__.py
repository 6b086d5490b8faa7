"""A Hugging Face folder in, QuantWeight out: files, claims, and one module a format."""
