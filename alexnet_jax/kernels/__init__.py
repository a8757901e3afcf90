"""What is only speed: the same numbers as the definitions in `layers.py`, computed faster."""
