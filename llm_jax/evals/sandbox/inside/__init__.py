"""Programs that run inside a sandbox; `judge` and `probe` send their text there, so they import only the standard library."""
