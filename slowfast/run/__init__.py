"""Start, watch, interrupt and resume a run."""
