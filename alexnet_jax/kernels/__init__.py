"""How the operations of `layers.py` are computed, and their gradients."""
