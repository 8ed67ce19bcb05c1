"""Ahead of time: whether an experiment fits a machine that one does not have, how fast it goes there, what it costs."""
