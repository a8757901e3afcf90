"""Fingerprints of arrays and a checksum of metadata, to detect damaged checkpoints."""

import json
import zlib
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


def fingerprint(tree: Any) -> str:
    """A hexadecimal hash of all arrays, sensitive to every bit and the same on every mesh."""
    return _hexadecimal(_fingerprint(tree))


def of_state(state: Any) -> dict[str, str]:
    """Fingerprints of a train state: `state` for all of it, `params` for the parameters alone."""
    return dict(zip(("state", "params"), map(_hexadecimal, _state_and_params(state)), strict=True))


def signed(metadata: dict[str, Any]) -> dict[str, Any]:
    """`metadata` with its checksum."""
    return {**metadata, "crc32": zlib.crc32(_canonical(metadata))}


def verified(metadata: dict[str, Any]) -> dict[str, Any]:
    """`metadata` without its checksum; raises `ValueError` if it is wrong, `KeyError` if missing."""
    metadata = dict(metadata)
    crc = metadata.pop("crc32")
    if zlib.crc32(_canonical(metadata)) != crc:
        raise ValueError("its metadata does not match its checksum")
    return metadata


def _canonical(metadata: dict[str, Any]) -> bytes:
    return json.dumps(metadata, sort_keys=True).encode()


def _hexadecimal(words: Array) -> str:
    return "".join(f"{int(word):08x}" for word in jax.device_get(words))


@jax.jit
def _state_and_params(state: Any) -> tuple[Array, Array]:
    # In one program, XLA computes the parameters' sums only once.
    return _fingerprint(state), _fingerprint(state.params)


@jax.jit
def _fingerprint(tree: Any) -> Array:
    # Integer sums do not depend on the order, so each device sums its own shard.
    total = jnp.zeros(2, jnp.uint32)
    for leaf in jax.tree.leaves(tree):
        total = total * jnp.uint32(0x01000193) + _scrambled_sum(leaf)
    return total


def _scrambled_sum(leaf: Array) -> Array:
    bits = jax.lax.bitcast_convert_type(leaf, jnp.uint32)
    position = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        position = position * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)

    def mix(seed: int, factor: int) -> Array:
        word = (bits ^ (position * jnp.uint32(seed))) * jnp.uint32(factor)
        word ^= word >> 15
        word *= jnp.uint32(0xC2B2AE35)
        return jnp.sum(word ^ (word >> 13), dtype=jnp.uint32)

    return jnp.stack([mix(0x9E3779B1, 0x85EBCA6B), mix(0x7FEB352D, 0x846CA68B)])
