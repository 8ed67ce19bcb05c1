"""Programs that run inside a sandbox; `judge` and `probe` send them there: they import only the standard library."""
