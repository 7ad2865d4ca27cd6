"""Make batches of clips from a list; `build` reads the configuration, other modules take plain arguments."""
