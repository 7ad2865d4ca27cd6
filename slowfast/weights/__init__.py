"""Files of weights: fetch, read, convert, load."""
