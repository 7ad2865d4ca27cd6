"""Draw the curves of a run."""
