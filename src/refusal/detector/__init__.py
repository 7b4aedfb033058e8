"""Is this text a refusal? Pure text in, a verdict out."""
