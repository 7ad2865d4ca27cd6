"""Fetch, read, convert and load files of weights."""
