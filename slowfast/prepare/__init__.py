"""Prepare data sets before training: scan, split, annotate, check, re-encode."""
