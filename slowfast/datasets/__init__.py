"""From a list file to batches of clips; `build` is the way in, every other module takes plain arguments."""
