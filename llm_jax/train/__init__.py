"""Pre-training: losses, optimizer, state, step and loop."""
