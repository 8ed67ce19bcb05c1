"""Studies of what is trained: does muP hold, how far positions reach, which corpus teaches more."""
