"""Faster implementations of the definitions in `layers.py`, with the same results."""
