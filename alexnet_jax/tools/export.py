"""The command `export`: trained weights for other programs."""

import argparse
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from alexnet_jax.common.files import replacing
from alexnet_jax.weights import pretrained
from alexnet_jax.weights.pretrained import Pretrained

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def stablehlo(loaded: Pretrained) -> bytes:
    """Exports the inference function, for any batch size and platform; read by `jax.export.deserialize`.

    It maps uint8 `[B, S, S, 3]` RGB, where S is `preprocess.resize_size`, to logits `[B, classes]`.

    Raises:
      UserError: the weights lack layers.
    """
    loaded.require_classifier()
    side = loaded.preprocess.resize_size

    def logits(images: jax.Array) -> Any:
        return loaded.model.apply(loaded.variables, loaded.preprocess.view(images))

    (batch,) = jax.export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, side, side, 3), jnp.uint8)
    return bytes(jax.export.export(jax.jit(logits), platforms=PLATFORMS)(images).serialize())


def main(args: argparse.Namespace) -> int:
    loaded = pretrained.read(args.weights, partial=True, variant=args.variant, mean=args.mean)
    if args.out.suffix.lower() == ".stablehlo":
        data = stablehlo(loaded)
        with replacing(args.out) as temporary:
            temporary.write_bytes(data)
    else:
        pretrained.save_pretrained(
            args.out, loaded.model, loaded.variables, loaded.preprocess, loaded.classes, loaded.class_ids
        )
    missing = f", without {', '.join(loaded.missing)}" if loaded.missing else ""
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB{missing}")
    return 0
