"""Commands for trained nets; `python -m alexnet_jax` lists them."""
