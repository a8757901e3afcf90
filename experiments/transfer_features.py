"""The arms of `experiments.transfer` on pool5 of the trained convolutions, which is computed once for all.

New fully connected layers learn in the training command's own steps, from its initial weights, in its order
of photographs. What the command does around them (decoding, convolutions, checkpoints) takes ten times as
long.
"""

import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax

from alexnet_jax import train as training
from alexnet_jax.common import files
from alexnet_jax.run import cached_features, inputs
from alexnet_jax.steps import state_shardings
from alexnet_jax.tools import probe as probes
from experiments.sweep_plan import Run
from experiments.transfer_data import Split

Points = dict[str, np.ndarray]  # pool5, float32 `[6, 6, C]`, by photograph


def pool5(run: Run) -> Points:
    """pool5 of each of a run's photographs, as `<train or val>/<class>/<file>`, kept in its workdir."""
    run.workdir.mkdir(parents=True, exist_ok=True)
    built, found = training.Run(run.config, run.workdir), {}
    params = {**built.init_state().params, **built.start}
    for split, part in (("train", "train"), ("test", "val")):
        source: Any = inputs.open_images(run.config.data, split)
        path = run.workdir / f"{part}.npy"
        records = cached_features.pooled_maps(path, built.model, params, built.preprocess, source)
        found |= {f"{part}/{name}": maps for name, maps in zip(source.paths, records["image"], strict=True)}
    return found


def kept(path: pathlib.Path, function: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What a function returns, or returned before, kept in `path`."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(path, json.dumps(function()))
    return json.loads(path.read_text())


def probe(points: Points, split: Split) -> dict[str, float]:
    """Softmax regression: `error` in % and `loss` on the split's test photographs."""
    x, y = _arrays(points, split.train)
    test_x, test_y = _arrays(points, split.test)
    fitted = probes.fit(x.reshape(len(x), -1), y, int(y.max()) + 1)
    return _tested(fitted.logits(test_x.reshape(len(test_x), -1)), test_y)


def learn(planned: Run, points: Points, split: Split) -> dict[str, float]:
    """What a run with frozen convolutions comes to: `error` in % and `loss` on its test photographs."""
    run = training.Run(planned.config, planned.workdir)
    x, y = _arrays(points, split.train)
    records = np.zeros(len(y), [("image", "f4", x.shape[1:]), ("label", "i4"), ("weight", "f4")])
    records["image"], records["label"], records["weight"] = x, y, 1
    data, state = planned.config.data, run.init_state()
    start = jax.device_put(run.start, state_shardings(run.mesh).params)
    state = state.replace(params={**state.params, **start})
    batches = cached_features.batches(records, data.batch_size, planned.seed, data.order, 0)
    for _ in range(run.total_steps):
        batch: dict[str, Any] = dict(next(batches))
        del batch["index"]
        state, _ = run.train_step(state, batch)
    test_x, test_y = _arrays(points, split.test)
    head = run.model.clone(reads="pool5")
    return _tested(np.asarray(jax.jit(head.apply)({"params": state.params}, test_x)), test_y)


def _arrays(points: Points, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """pool5 `[N, 6, 6, C]` and labels int32 `[N]`."""
    of_class = [pathlib.Path(name).parts[1] for name in names]
    known = sorted(set(of_class))
    labels = np.array([known.index(name) for name in of_class], np.int32)
    return np.stack([points[name] for name in names]), labels


def _tested(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The error in % and the mean cross entropy of logits `[N, K]`."""
    error = 100 * float(np.mean(logits.argmax(axis=1) != labels))
    loss = float(optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean())
    return {"error": round(error, 2), "loss": round(loss, 4)}
