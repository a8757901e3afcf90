"""One contestant of `benchmarks.speed`, in a process of its own: eqxvision's alexnet, without this project.

    python -m benchmarks.theirs_eqx train

Prints a JSON object as `benchmarks.ours` does. The net is torchvision's, written for one image and batched by
`jax.vmap`; SGD is optax's, with momentum and weight decay. It runs as it comes, in an environment of its own
(eqxvision 0.2.8 needs `equinox.experimental`, which later versions of equinox do not have):

    pip install --no-deps eqxvision==0.2.8
    pip install equinox==0.9.2 jax==0.4.20 jaxlib==0.4.20 optax==0.1.7 "numpy<2" "scipy<1.13"
"""

import argparse
import importlib.metadata
import json
import platform
import time
import warnings

warnings.filterwarnings("ignore", message="PyTorch is required")

import equinox as eqx  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402
from eqxvision.models import alexnet  # noqa: E402

from benchmarks import tables  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("work", choices=("train", "forward", "about"))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--warm", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    given = parser.parse_args()
    print(json.dumps(about() if given.work == "about" else {**net(given), "peak_bytes": tables.peak_bytes()}))


def net(given):
    key = jax.random.PRNGKey(0)
    images = jax.random.randint(key, (given.batch, 3, given.image_size, given.image_size), 0, 256, jnp.uint8)
    labels = jax.random.randint(key, (given.batch,), 0, 1000)
    model = eqx.tree_inference(alexnet(), given.work == "forward")

    def logits(model, images, key):
        keys = jax.random.split(key, len(images))
        return jax.vmap(lambda image, key: model(image.astype(jnp.float32) - 120.0, key=key))(images, keys)

    def loss(model, images, labels, key):
        losses = optax.softmax_cross_entropy_with_integer_labels(logits(model, images, key), labels)
        return jnp.mean(losses)

    optimizer = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.01, momentum=0.9))
    opt_state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(state, images, labels, key):
        model, opt_state = state
        gradients = eqx.filter_grad(loss)(model, images, labels, key)
        updates, opt_state = optimizer.update(gradients, opt_state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), opt_state

    forward = eqx.filter_jit(logits)
    state, seconds = (model, opt_state), []
    for number in range(max(given.warm, 1) + given.steps):
        began = time.perf_counter()
        if given.work == "train":
            state = step(state, images, labels, key)
            wait(state)
        else:
            wait(forward(model, images, key))
        if number >= max(given.warm, 1):
            seconds.append(time.perf_counter() - began)
    return {"seconds": seconds, "images": given.batch}


def wait(result):
    for leaf in jax.tree_util.tree_leaves(eqx.filter(result, eqx.is_array)):
        leaf.block_until_ready()


def about():
    versions = {name: importlib.metadata.version(name) for name in ("eqxvision", "equinox")}
    versions |= {"eqxvision_jax": jax.__version__, "eqxvision_python": platform.python_version()}
    return {"versions": versions}


if __name__ == "__main__":
    main()
