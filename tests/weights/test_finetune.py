"""Training from initial weights: which layers are loaded and which frozen, and reading a run's weights."""

import dataclasses
import itertools
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from alexnet_jax import config as configs
from alexnet_jax import evaluate
from alexnet_jax import train as training
from alexnet_jax.common.errors import UserError
from alexnet_jax.data import inference
from alexnet_jax.data.preprocess import Preprocess
from alexnet_jax.run import cached_features, checkpoint, logs
from alexnet_jax.tools import predict
from alexnet_jax.variants import param_shapes
from alexnet_jax.weights import pretrained
from tests.fixtures import seeded
from tests.test_train import assert_same_bits, final_params, images, status, tiny  # noqa: F401  (fixtures)

FROZEN = tuple((name, 0.0, 0.0) for name in cached_features.CONVOLUTIONS)
STILL = {"augment.crop": False, "augment.mirror": False, "augment.colour": "none"}
STD = np.array([50, 60, 70], np.float32)


@pytest.fixture(scope="module")
def weights(tiny, tmp_path_factory):  # noqa: F811
    """Weights of the tiny net for three other classes, with their own mean and std."""
    folder = tmp_path_factory.mktemp("weights")
    model = training.Run(tiny(**{"mesh.data": 1}), folder / "unused").model.clone(num_classes=3)
    shapes = param_shapes(model, 55)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: 0.05 * rng.standard_normal(s.shape).astype(np.float32), shapes)
    preprocess = Preprocess(60, 55, mean=np.array([10, 20, 30], np.float32), std=STD)
    path = folder / "weights.safetensors"
    pretrained.save_pretrained(path, model, {"params": params}, preprocess, ("x", "y", "z"))
    return path


@pytest.fixture(scope="module")
def finetune(tiny, weights):  # noqa: F811
    """A config that starts from the weights with frozen convolutions."""

    def make(**overrides):
        base = {"init.path": str(weights), "mesh.data": 1, "optimizer.layer_rates": FROZEN, **STILL}
        return tiny(**{**base, **overrides})

    return make


@pytest.fixture(scope="module")
def finetuned(finetune, tmp_path_factory):
    """The workdir of a run on cached features."""
    workdir = tmp_path_factory.mktemp("finetuned")
    assert training.train(finetune(), workdir) == "done"
    return workdir


def test_all_layers_but_the_last_are_loaded(finetune, weights, tmp_path):
    run = training.Run(finetune(), tmp_path / "run")
    assert set(run.start) == {"conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7"}
    np.testing.assert_array_equal(run.preprocess.std, STD)
    (tmp_path / "run").mkdir()
    checkpoints = checkpoint.Checkpoints(tmp_path / "run")
    state, _ = training.restore_or_init(run, checkpoints)
    checkpoints.close()
    saved = pretrained.read(weights).variables["params"]
    for name, layer in saved.items():
        if name != "fc8":
            assert_same_bits(jax.device_get(state.params[name]), jax.device_get(layer))
    assert state.params["fc8"]["bias"].shape == (2, 5)


def test_frozen_layers_keep_their_bits_and_others_learn(finetuned, weights):
    before, after = pretrained.read(weights).variables["params"], final_params(finetuned)
    for name in cached_features.CONVOLUTIONS:
        assert_same_bits(jax.device_get(before[name]), after[name])
    assert not np.array_equal(before["fc6"]["kernel"], after["fc6"]["kernel"])


def test_training_on_cached_features_gives_the_same_losses(finetune, finetuned, tmp_path, monkeypatch):
    assert cached_features.is_frozen(finetune())
    for key in ("augment.crop", "augment.mirror"):
        assert not cached_features.is_frozen(finetune(**{key: True}))
    assert not cached_features.is_frozen(finetune(**{"augment.colour": "paper"}))
    assert not cached_features.is_frozen(finetune(**{"optimizer.layer_rates": FROZEN[1:]}))
    kernel, bias = ("conv1.kernel", 0.0, 0.0), ("*.bias", 0.0, 0.0)
    assert not cached_features.is_frozen(finetune(**{"optimizer.layer_rates": (*FROZEN[1:], kernel)}))
    assert cached_features.is_frozen(finetune(**{"optimizer.layer_rates": (*FROZEN[1:], kernel, bias)}))
    assert cached_features.is_frozen(finetune(**{"optimizer.layer_rates": (*FROZEN, ("*.bias", 3.0, 0.1))}))
    assert not cached_features.is_frozen(
        finetune(**{"optimizer.layer_rates": (*FROZEN, ("conv1", 3.0, 0.1))})
    )

    (maps,) = finetuned.glob("pool5-*.npy")
    assert len(np.load(maps)) == 60
    monkeypatch.setattr(cached_features, "is_frozen", lambda config: False)
    training.train(finetune(), tmp_path)
    assert not list(tmp_path.glob("pool5*"))
    once, each = logs.read_metrics(finetuned), logs.read_metrics(tmp_path)
    for a, b in zip(once, each, strict=True):
        for key in {"train/loss", "eval/loss"} & set(a):
            assert a[key] == pytest.approx(b[key], rel=1e-4)


def test_the_name_of_the_cache_depends_on_images_net_weights_and_mean(finetune, tmp_path):
    run = training.Run(finetune(), tmp_path / "run")
    params = {
        **jax.jit(run.model.init)(jax.random.key(0), np.zeros((1, 55, 55, 3), np.float32))["params"],
        **run.start,
    }
    name = cached_features.file_name("folder:a", run.model, params, run.preprocess)
    assert name == cached_features.file_name("folder:a", run.model, params, run.preprocess)
    other = {**params, "conv3": jax.tree.map(lambda x: x + 1e-3, params["conv3"])}
    darker = dataclasses.replace(run.preprocess, mean=run.preprocess.mean + 1)
    names = {
        name,
        cached_features.file_name("folder:b", run.model, params, run.preprocess),
        cached_features.file_name("folder:a", run.model, other, run.preprocess),
        cached_features.file_name("folder:a", run.model, params, darker),
        cached_features.file_name(
            "folder:a", run.model.clone(norm=not run.model.norm), params, run.preprocess
        ),
    }
    assert len(names) == 5


@pytest.mark.slow
def test_cached_features_on_a_mesh(finetune, finetuned, tmp_path):
    training.train(finetune(**{"mesh.data": 2, "mesh.column": 2}), tmp_path)
    a, b = final_params(finetuned), final_params(tmp_path)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), a, b)


def test_resuming_does_not_need_the_weights_and_changes_no_bit(finetune, finetuned, weights, tmp_path):
    own = {"init.path": str(shutil.copy(weights, tmp_path))}
    training.train(finetune(**own, **{"run.total_steps": 6}), tmp_path / "resumed")
    (tmp_path / weights.name).unlink()
    training.train(finetune(**own), tmp_path / "resumed")
    assert_same_bits(final_params(finetuned), final_params(tmp_path / "resumed"))


def test_a_run_s_weights_can_be_read_without_its_config_and_data(finetuned, images, tmp_path):  # noqa: F811
    workdir = tmp_path / "run"
    shutil.copytree(finetuned, workdir)
    (workdir / "config.json").unlink()
    loaded = pretrained.read(workdir)
    assert loaded.classes == tuple(f"class{i}" for i in range(10)) and loaded.missing == ()
    np.testing.assert_array_equal(loaded.preprocess.std, STD)
    # predict has the same error as the evaluation.
    names = inference.find([images / "test"])
    answers = list(predict.predictions(loaded, names, topk=1))
    right = sum(a["predictions"][0]["class"] == pathlib.Path(a["file"]).parent.name for a in answers)
    assert 100 - 100 * right / len(names) == pytest.approx(status(workdir)["eval"]["top1_error"])


def test_weights_of_another_net_name_the_key_that_differs(finetune):
    with pytest.raises(UserError, match=r"init.path=.*its net has lrn_k=2.0, this config 1.0; .*model.lrn_k"):
        training.Run(finetune(**{"model.lrn_k": 1.0}), pathlib.Path("unused"))
    with pytest.raises(UserError, match=r"nowhere.pth: no such file"):
        training.Run(finetune(**{"init.path": "nowhere.pth"}), pathlib.Path("unused"))


@pytest.mark.slow
@pytest.mark.parametrize("parts", ["all layers", "convolutions alone"])
@pytest.mark.parametrize(
    "change, fit",
    [
        ({"model.fc_widths": (16, 16)}, ()),
        ({"model.fc_widths": (16, 32)}, ()),
        ({"model.fc_widths": (32, 16)}, ("fc6",)),
        ({"data.resize_size": 120, "data.image_size": 100}, ()),
        ({"data.resize_size": 60, "data.image_size": 60}, ("fc6", "fc7")),
        ({}, ("fc6", "fc7")),
    ],
)
def test_layers_that_do_not_fit_are_new(finetune, weights, tmp_path, parts, change, fit):
    """DIGITS#1742: whole weights for a head of other widths, or images of another size."""
    path, loaded = weights, pretrained.read(weights)
    params = loaded.variables["params"]
    if parts == "convolutions alone":
        params = {name: params[name] for name in cached_features.CONVOLUTIONS}
        path, fit = tmp_path / "convolutions.safetensors", ()
        pretrained.save_pretrained(path, loaded.model, {"params": params}, loaded.preprocess)
    start = training.Run(finetune(**{"init.path": str(path), **change}), tmp_path / "run").start
    assert_same_bits(start, {name: params[name] for name in (*cached_features.CONVOLUTIONS, *fit)})


@pytest.mark.slow
def test_the_first_lines_say_which_layers_are_new(finetune, weights, tmp_path, capsys):
    training.train(finetune(**{"model.fc_widths": (16, 16), "run.total_steps": 1}), tmp_path / "run")
    said = capsys.readouterr()
    expected = f"init       conv1, conv2, conv3, conv4, conv5 of {weights}; new: fc6, fc7, fc8"
    assert expected in said.out + said.err


@pytest.mark.parametrize("layers", [("conv1",), ("conv1", "conv2", "fc6"), ("fc7",)])
def test_init_layers_are_those_taken(finetune, weights, tmp_path, layers):
    start = training.Run(finetune(**{"init.layers": layers}), tmp_path / "run").start
    params = pretrained.read(weights).variables["params"]
    assert_same_bits(start, {name: params[name] for name in layers})


def test_other_layers_than_those_taken_may_have_other_shapes(finetune, tmp_path):
    wider = {"model.widths": (8, 32, 16, 16, 16, 16), "init.layers": ("conv1", "conv4")}
    assert set(training.Run(finetune(**wider), tmp_path / "run").start) == {"conv1", "conv4"}
    second_input = {"model.low_resolution": True, "init.layers": ("conv1", "conv3")}
    assert set(training.Run(finetune(**second_input), tmp_path / "run").start) == {"conv1", "conv3"}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"init.layers": ("fc8",)}, r"fc8 is of other classes; leave it out of init.layers"),
        ({"init.layers": ("conv6",)}, r"conv6 is not in both nets"),
        ({"init.layers": ("conv9",)}, r"conv9 is not in both nets"),
        (
            {"init.layers": ("fc6",), "data.resize_size": 120, "data.image_size": 100},
            r"fc6 is of shape .* is 55\)",
        ),
        ({"init.layers": ("conv2",), "model.widths": (16,) * 6}, r"conv2 is of shape \[2, 5, 5, 4, 8\], not"),
        (
            {"init.layers": ("conv2",), "model.low_resolution": True},
            r"conv2 is of shape \[2, 5, 5, 4, 8\], not \[2, 5, 5, 7, 8\]",
        ),
        ({"model.low_resolution": True}, r"its net has low_resolution=False"),
        ({"model.widths": (16,) * 6}, r"its net has widths="),
        ({"init.mean": "nowhere.npy"}, r"nowhere.npy: cannot be read"),
    ],
)
def test_layers_that_cannot_be_taken(finetune, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        training.Run(finetune(**change), tmp_path / "run")


def test_caffes_weights_and_mean_in_numpys_files(finetune, tmp_path):
    """finetune_alexnet_with_tensorflow: the config's variant decides between nets of the same shapes."""
    shapes = dict(itertools.islice(seeded.CAFFE.items(), 5))
    layers = seeded.layers(shapes, seed=3)
    arrays = {
        f"{n}/{k}": a
        for n, (w, b) in layers.items()
        for k, a in (("weights", w.transpose(2, 3, 1, 0)), ("biases", b))
    }
    np.savez(tmp_path / "bvlc_alexnet.npz", **arrays)
    bgr = np.random.default_rng(0).uniform(90, 130, (3, 256, 256)).astype(np.float32)
    np.save(tmp_path / "ilsvrc_2012_mean.npy", bgr)
    sizes = {
        "data.resize_size": 256,
        "data.image_size": 227,
        "model.widths": None,
        "model.fc_widths": (16, 16),
    }
    paths = {
        "init.path": str(tmp_path / "bvlc_alexnet.npz"),
        "init.mean": str(tmp_path / "ilsvrc_2012_mean.npy"),
    }
    run = training.Run(finetune(**{"model.variant": "caffe", **sizes, **paths}), tmp_path / "run")
    assert set(run.start) == set(shapes)
    np.testing.assert_array_equal(
        run.start["conv1"]["kernel"][0, :, :, 0], layers["conv1"][0][:48, 2].transpose(1, 2, 0)
    )
    np.testing.assert_array_equal(run.preprocess.mean, bgr[::-1].transpose(1, 2, 0))


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_run_whose_weights_are_not_finite_is_refused(finetune, tmp_path, value):
    run, folder = training.Run(finetune(), tmp_path / "run"), tmp_path / "run"
    folder.mkdir()
    pretrained.describe(folder, run.model, run.preprocess, run.source, may_be_renamed=False)
    state = run.init_state()
    checkpoints = checkpoint.Checkpoints(folder)
    checkpoints.save(1, state, training.Record(images=len(run.source)).to_json(), last=True)
    np.testing.assert_array_equal(
        pretrained.read(folder).variables["params"]["fc6"]["bias"], state.params["fc6"]["bias"]
    )
    fc6 = {**state.params["fc6"], "bias": state.params["fc6"]["bias"].at[-1, -1].set(value)}
    state = state.replace(params={**state.params, "fc6": fc6})
    checkpoints.save(2, state, training.Record(images=len(run.source)).to_json(), last=True)
    checkpoints.close()
    with pytest.raises(UserError) as caught:
        pretrained.read(folder)
    assert str(caught.value).startswith(f"{folder}: fc6/bias has NaN or infinity; ")
    assert "\n" not in str(caught.value)
    (folder / configs.FILE_NAME).write_text(finetune().to_json())
    with pytest.raises(UserError, match="fc6/bias has NaN or infinity"):
        evaluate.evaluate_workdir(finetune(), folder)


def test_a_damaged_description_is_one_clear_line(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match=r"net.json: unreadable .*give the workdir of a run"):
        pretrained.read(tmp_path / "run")
    (tmp_path / "run" / pretrained.DESCRIPTION).write_text(json.dumps({"model": {}}))
    with pytest.raises(UserError, match=r"net.json: the description of the net is damaged"):
        pretrained.read(tmp_path / "run")
