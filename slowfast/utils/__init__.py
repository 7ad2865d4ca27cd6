"""Provide logging, randomness, files and process groups."""
