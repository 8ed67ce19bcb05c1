"""The modules of the Transformer, one kind per file."""
