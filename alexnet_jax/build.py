"""A run as built from its config: data, net, steps and how often what happens; nothing is compiled yet."""

import collections
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from alexnet_jax import augment, columns, evaluate, steps
from alexnet_jax import config as configs
from alexnet_jax import optimizer as optimizers
from alexnet_jax.data import pipeline
from alexnet_jax.data.preprocess import TORCHVISION, Preprocess
from alexnet_jax.data.sources import Source
from alexnet_jax.data.statistics import Statistics
from alexnet_jax.model import AlexNet
from alexnet_jax.run import cached_features, checkpoint
from alexnet_jax.weights import pretrained


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as built from its config: what the loop needs and does not change."""

    config: configs.Config
    workdir: pathlib.Path
    mesh: Mesh
    source: Source
    model: AlexNet
    train_step: Callable[[steps.TrainState, steps.Batch], tuple[steps.TrainState, steps.Metrics]]
    evaluate: Callable[..., evaluate.Result | None]
    init_state: Callable[[], steps.TrainState]
    abstract_state: steps.TrainState
    preprocess: Preprocess
    start: dict[str, Any]
    total_steps: int
    eval_every: int
    save_every: int
    keep_every: int | None

    def evaluates_at(self, step: int) -> bool:
        """Whether the net is tested after `step`: every so often, and at the end."""
        return is_due(step, self.eval_every) or step == self.total_steps

    def epoch(self, step: int) -> float:
        """Passes over the training images done at `step`."""
        return step * self.config.data.batch_size / len(self.source)


def build(config: configs.Config, workdir: pathlib.Path) -> Run:
    """Opens the data and finds out that the parts fit; compiles and writes nothing yet."""
    data, run = config.data, config.run
    mesh = columns.make_mesh(config.mesh.data, config.mesh.column)
    evaluate.check_batch_size(data.batch_size, mesh, data.micro_batches)
    source, test_source = (evaluate.open_source(config, split) for split in ("train", "test"))
    statistics = evaluate.statistics_of(source)
    model = configs.build_model(config, source.num_classes)
    init = None
    if config.init.path and not checkpoint.exist(workdir):
        init = pretrained.read(config.init.path, partial=True)
    preprocess = build_preprocess(config, workdir, statistics, init)
    in_steps = functools.partial(configs.in_steps, run, num_examples=len(source), batch_size=data.batch_size)
    total_steps = in_steps("total")
    optimizer = build_optimizer(config, len(source), total_steps)
    view = build_view(config, statistics, preprocess, len(source))
    trained = model
    if cached_features.is_frozen(config):
        trained, view = model.clone(reads="pool5"), cached_features.view

    def init_state() -> steps.TrainState:
        return steps.init_state(model, optimizer, data.image_size, run.seed, mesh)

    return Run(
        config=config,
        workdir=workdir,
        mesh=mesh,
        source=source,
        model=model,
        train_step=steps.make_train_step(
            trained,
            optimizer,
            mesh,
            view,
            seed=run.seed,
            log_every=run.log_every_steps,
            micro_batches=data.micro_batches,
        ),
        evaluate=evaluate.make_evaluator(config, model, mesh, test_source, preprocess),
        init_state=init_state,
        abstract_state=steps.abstract_state(init_state, mesh),
        preprocess=preprocess,
        start={} if init is None else pretrained.start_from(init, model, preprocess, source.class_names),
        total_steps=total_steps,
        eval_every=in_steps("eval_every"),
        save_every=in_steps("save_every"),
        keep_every=configs.steps_of(run.keep_every_epochs, len(source), data.batch_size)
        if run.keep_every_epochs is not None
        else None,
    )


def build_preprocess(
    config: configs.Config,
    workdir: pathlib.Path,
    statistics: Statistics,
    init: pretrained.Pretrained | None,
) -> Preprocess:
    """What a run that goes on began with, else that of the weights it starts from, else by the statistics."""
    data = config.data
    if (workdir / pretrained.DESCRIPTION).exists():
        return pretrained.read_description(workdir).preprocess.resized(data.resize_size, data.image_size)
    if init is not None:
        return init.preprocess.resized(data.resize_size, data.image_size)
    mean = statistics.mean(config.augment.mean, data.resize_size)
    # torchvision's net sees numbers of about 1, all others grey levels.
    std = TORCHVISION.std if config.model["variant"] == "torchvision" else np.ones(3, np.float32)
    return Preprocess(data.resize_size, data.image_size, mean=mean, std=std)


def build_optimizer(
    config: configs.Config, num_examples: int, total_steps: int
) -> optax.GradientTransformationExtraArgs:
    """The 2012 update rule with the config's schedule for weights, biases and single layers."""
    opt = config.optimizer

    def at(epoch: float) -> int:
        return configs.steps_of(epoch, num_examples, config.data.batch_size)

    def schedule(rate: float) -> optimizers.Schedule:
        match opt.schedule:
            case "plateau":
                return optimizers.plateau(rate, opt.drop_factor)
            case "epochs":
                return optimizers.step_decay(rate, opt.drop_factor, tuple(at(e) for e in opt.drop_epochs))
            case "exponential":
                return optimizers.exponential(rate, opt.final_factor, total_steps)
        return optimizers.constant(rate)

    bias_rate = opt.bias_rate_factor * opt.learning_rate
    weights = schedule(opt.learning_rate)
    biases = schedule(bias_rate) if opt.bias_rate_drops else optimizers.constant(bias_rate)
    events: dict[str, list[tuple[int, float]]] = collections.defaultdict(list)
    for layer, epoch, rate in sorted(opt.layer_rates, key=lambda event: event[1]):
        events[layer].append((at(epoch), rate))
    by_layer = {layer: tuple(its) for layer, its in events.items()}
    rates = optimizers.Rates(weights=weights, biases=biases, events=by_layer)
    return optimizers.sgd_2012(rates, momentum=opt.momentum, weight_decay=opt.weight_decay)


def build_view(
    config: configs.Config, statistics: Statistics, preprocess: Preprocess, num_examples: int
) -> Callable[..., jax.Array]:
    """What the net sees of a training image: `view(images, key, example_ids, step=...)`."""
    aug = config.augment
    view = functools.partial(
        augment.training_views,
        mean=jnp.asarray(preprocess.mean),
        std=jnp.asarray(preprocess.std),
        size=preprocess.crop_size,
        sqrt_eigenvalues=jnp.asarray(statistics.pca_sqrt_eigenvalues),
        eigenvectors=jnp.asarray(statistics.pca_eigenvectors),
        crop=aug.crop,
        mirror=aug.mirror,
        run_length=aug.run_length,
        colour=aug.colour,
    )
    if aug.colour_until_epochs is None:
        return lambda images, key, example_ids, step: view(images, key, example_ids)
    until = configs.steps_of(aug.colour_until_epochs, num_examples, config.data.batch_size)
    return lambda images, key, example_ids, step: view(images, key, example_ids, colour_on=step < until)


def is_due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps happens after `step`."""
    return step > 0 and step % every == 0


def open_batches(run: Run, params: Any, start_step: int) -> Iterator[pipeline.Batch]:
    """The run's batches from a step on, of images or of what a trunk at rest makes of them."""
    data, seed = run.config.data, run.config.run.seed
    if cached_features.is_frozen(run.config):
        path = run.workdir / cached_features.file_name(data.source, run.model, params, run.preprocess)
        records = cached_features.pooled_maps(path, run.model, params, run.preprocess, run.source)
        return cached_features.batches(records, data.batch_size, seed, start_step)
    share, shares = columns.process_slice(run.mesh)
    return pipeline.train_batches(
        run.source,
        batch_size=data.batch_size,
        resize_size=data.resize_size,
        seed=seed,
        start_step=start_step,
        host_index=share,
        host_count=shares,
    )
