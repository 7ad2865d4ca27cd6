"""Train, validate and test."""
