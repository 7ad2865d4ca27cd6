"""Make batches of clips from a list; only `build` reads the configuration, all other modules take plain arguments."""
