"""The command `probe`: a linear probe, softmax regression on standardised features by L-BFGS."""

import argparse
import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from alexnet_jax.common.errors import UserError
from alexnet_jax.data.folders import NO_CLASS
from alexnet_jax.tools import features

L2 = 0.1  # for standardised features; 0.001 to 1 do equally well on ants against bees
_MAX_STEPS = 500
_TOLERANCE = 1e-4  # gradient norm at which the fit stops


@dataclasses.dataclass(frozen=True)
class Probe:
    """A fitted probe: `logits = (features - mean) / std @ weights + biases`."""

    mean: np.ndarray
    std: np.ndarray
    weights: np.ndarray
    biases: np.ndarray

    def logits(self, points: np.ndarray) -> np.ndarray:
        """`[N, D]` to `[N, classes]`."""
        return (points - self.mean) / self.std @ self.weights + self.biases


def fit(points: np.ndarray, labels: np.ndarray, num_classes: int, l2: float = L2) -> Probe:
    """Softmax regression: mean cross entropy plus `l2 / 2` times the squared norm of the weights.

    Args:
      points: float32 `[N, D]`.
      labels: int `[N]`.
    """
    mean, std = points.mean(axis=0), points.std(axis=0)
    std = np.where(std > 1e-6 * std.max(), std, 1)  # a constant unit carries no information
    x, y = jnp.asarray((points - mean) / std), jnp.asarray(labels)

    def loss(params: dict[str, jax.Array]) -> jax.Array:
        logits = x @ params["weights"] + params["biases"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return losses.mean() + 0.5 * l2 * jnp.sum(params["weights"] ** 2)

    optimizer = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    @jax.jit
    def step(params: dict[str, jax.Array], state: optax.OptState):
        value, gradient = value_and_grad(params, state=state)
        updates, state = optimizer.update(gradient, state, params, value=value, grad=gradient, value_fn=loss)
        norm = jnp.sqrt(sum(jnp.vdot(g, g) for g in jax.tree.leaves(gradient)))
        return optax.apply_updates(params, updates), state, norm

    params = {"weights": jnp.zeros((points.shape[1], num_classes)), "biases": jnp.zeros(num_classes)}
    state = optimizer.init(params)
    for _ in range(_MAX_STEPS):
        params, state, norm = step(params, state)
        if norm < _TOLERANCE:
            break
    return Probe(mean, std, np.asarray(params["weights"]), np.asarray(params["biases"]))


def _of_a_class(path: pathlib.Path) -> tuple[np.ndarray, list[str]]:
    """The features `[N, D]` and classes of the images in a file of features that have a class."""
    _, points, classes = features.load(path)
    kept = [name != NO_CLASS for name in classes]
    return points[np.array(kept)], [name for name in classes if name != NO_CLASS]


def main(args: argparse.Namespace) -> int:
    (points, classes), (test_points, test_classes) = map(_of_a_class, (args.train, args.test))
    names = sorted(set(classes))
    if unknown := sorted(set(test_classes) - set(names)):
        raise UserError(f"{args.test}: has the class {unknown[0]}, but {args.train} only {', '.join(names)}")
    if len(names) < 2:
        raise UserError(
            f"{args.train}: only one class, {names[0]}; give features a folder with one folder per class"
        )
    labels, test_labels = (np.array(list(map(names.index, some))) for some in (classes, test_classes))
    probe = fit(points, labels, len(names), args.l2)
    train, test = (
        100.0 * float(np.mean(probe.logits(x).argmax(axis=1) == y))
        for x, y in ((points, labels), (test_points, test_labels))
    )
    if args.json:
        counts = {"train_images": len(labels), "test_images": len(test_labels), "classes": len(names)}
        print(json.dumps({"train_accuracy": train, "test_accuracy": test, **counts}))
    else:
        print(f"train accuracy {train:.2f} % of {len(labels)} images in {len(names)} classes")
        print(f"test accuracy  {test:.2f} % of {len(test_labels)} images")
    return 0
