"""Configs: every key is read, every mistake is named."""

import ast
import dataclasses
import importlib
import json
import math
import pathlib
import re

import pytest

from alexnet_jax import config as configs
from alexnet_jax.common.errors import UserError
from alexnet_jax.model import AlexNet
from configs import default, imagenet2012, original

ROOT = pathlib.Path(__file__).parents[1]
ALL = {
    path.stem: importlib.import_module(f"configs.{path.stem}")
    for path in sorted((ROOT / "configs").glob("[a-z]*.py"))
}


@pytest.mark.parametrize("name", ALL)
def test_each_config_resolves_and_its_docstring_is_a_contract(name):
    module = ALL[name]
    configs.resolve(module.get_config())
    assert f"python main.py --config=configs/{name}.py" in module.__doc__
    assert "top-1" in module.__doc__  # the accuracy to expect


SECTIONS = {field.type.__name__: field.name for field in dataclasses.fields(configs.Config)}


def keys_read(path):
    """`section.key` wherever a module reads a key of a section, by any name that it gives the section."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    named = {section: {section} for section in SECTIONS.values()}
    for node in nodes:
        if isinstance(node, ast.Assign):  # data, run = config.data, config.run
            target, value = node.targets[0], node.value
            pairs = [(target, value)]
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                pairs = zip(target.elts, value.elts, strict=True)
            for name, given in pairs:
                if isinstance(name, ast.Name) and isinstance(given, ast.Attribute):
                    named.setdefault(name.id, set()).add(given.attr)
        elif isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:  # data: configs.Data
            kind = ast.unparse(node.annotation).strip("'").removeprefix("configs.")
            name = node.arg if isinstance(node, ast.arg) else getattr(node.target, "id", "")
            if kind in SECTIONS:
                named.setdefault(name, set()).add(SECTIONS[kind])
    found = set()
    for node in nodes:
        if isinstance(node, ast.Attribute):
            name = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
            found |= {f"{section}.{node.attr}" for section in named.get(name, ())}
    return found


def test_every_key_is_read_somewhere():
    """A key that no code asks for is a promise that is not kept."""
    modules = [path for path in (ROOT / "alexnet_jax").rglob("*.py") if path.name != "config.py"]
    read = set().union(*(keys_read(path) for path in modules))
    in_steps = re.findall(r'in_steps\("(\w+)"\)', (ROOT / "alexnet_jax" / "train.py").read_text())
    assert set(in_steps) == {"total", "eval_every", "save_every"}
    read |= {f"run.{name}_{unit}" for name in in_steps for unit in ("steps", "epochs")}
    for section in dataclasses.fields(configs.Config):
        if section.name == "model":  # its keys are the fields of the net
            continue
        for key in dataclasses.fields(section.type):
            assert f"{section.name}.{key.name}" in read, f"{section.name}.{key.name} is never read"


def test_the_paper_s_numbers_are_in_the_config_of_the_paper():
    config = configs.resolve(imagenet2012.get_config())
    assert (config.data.batch_size, config.data.resize_size, config.data.image_size) == (128, 256, 224)
    assert (config.optimizer.learning_rate, config.optimizer.momentum) == (0.01, 0.9)
    assert (config.optimizer.weight_decay, config.optimizer.drop_factor) == (0.0005, 0.1)
    assert (config.optimizer.max_drops, config.run.total_epochs) == (3, 90.0)
    assert configs.build_model(config, 1000).dropout == 0.5


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ({"data.batch_size": "8"}, "data.batch_size='8': must be a whole number"),
        ({"data.batch_size": 8.0}, "data.batch_size=8.0: must be a whole number"),
        ({"data.batch_size": True}, "data.batch_size=True: must be a whole number"),
        ({"data.batch_size": 0}, "data.batch_size=0: must be 1 or more"),
        ({"data.order": "sorted"}, "data.order='sorted': choose one of shuffled, fixed"),
        ({"data.resize_size": 63}, "data.resize_size=63: must be at least data.image_size=64"),
        ({"data.resize_size": 60_000}, "data.resize_size=60000: must be at most 4,096"),
        ({"data.max_bad_fraction": 1.5}, "data.max_bad_fraction=1.5"),
        ({"augment.colour": "pca"}, "augment.colour='pca': choose one of none, paper, original"),
        ({"augment.mean": "pixel"}, "augment.mean='pixel'"),
        ({"augment.mean_crop": "image"}, "augment.mean_crop='image': choose one of centre, same"),
        ({"augment.run_length": 0}, "augment.run_length=0"),
        ({"optimizer.learning_rate": float("nan")}, "optimizer.learning_rate=nan: must be finite"),
        ({"optimizer.learning_rate": -0.1}, "optimizer.learning_rate=-0.1"),
        ({"optimizer.momentum": 1.0}, "optimizer.momentum=1.0"),
        ({"optimizer.schedule": "cosine"}, "optimizer.schedule='cosine'"),
        (
            {"optimizer.layer_rates": (("conv9", 0.0, 0.0),)},
            "no parameter is named 'conv9'; the layers are conv1,",
        ),
        ({"optimizer.layer_rates": (("conv1.weights", 0.0, 0.0),)}, "each with a kernel and a bias, as in"),
        ({"optimizer.layer_rates": (("bias", 0.0, 0.0),)}, "no parameter is named 'bias'"),
        ({"optimizer.layer_rates": (("conv6", 0.0, 0.0),)}, "optimizer.layer_rates=(('conv6', 0.0, 0.0),)"),
        ({"optimizer.layer_rates": (("conv1", 0.0),)}, "optimizer.layer_rates[0]=('conv1', 0.0): must be a"),
        (
            {"optimizer.layer_rates": (("fc8", 1.0, math.inf),)},
            "optimizer.layer_rates[0][2]=inf: must be fin",
        ),
        ({"optimizer.layer_rates": (("fc8", -1.0, 0.1),)}, "optimizer.layer_rates"),
        ({"optimizer.drop_epochs": 4.0}, "optimizer.drop_epochs=4.0: must be a tuple"),
        ({"optimizer.drop_epochs": ("a",)}, "optimizer.drop_epochs[0]='a': must be a number"),
        ({"optimizer.drop_epochs": (1.0, None)}, "optimizer.drop_epochs[1]=None: must be a number"),
        ({"optimizer.drop_epochs": (math.nan,)}, "optimizer.drop_epochs[0]=nan: must be finite"),
        ({"optimizer.drop_epochs": (10**400,)}, "optimizer.drop_epochs[0]=inf"),
        ({"optimizer.drop_epochs": (-1.0,)}, "optimizer.drop_epochs[0]=-1.0: must be 0 or more"),
        (
            {"optimizer.drop_epochs": (1e30,)},
            "optimizer.drop_epochs[0]=1e+30: must be at most 1,000,000",
        ),
        ({"optimizer.max_drops": -1}, "optimizer.max_drops=-1: must be 0 or more"),
        ({"run.save_every_minutes": 0.0}, "run.save_every_minutes=0.0: must be above 0, or None"),
        ({"data.micro_batches": 3}, "data.micro_batches=3: must divide data.batch_size=64"),
        ({"optimizer.schedule": "exponential"}, "optimizer.schedule='exponential': choose one of plateau"),
        ({"augment.colour_until_epochs": -1.0}, "augment.colour_until_epochs=-1.0"),
        ({"run.total_steps": 2**31}, "run.total_steps=2147483648: must be below 2,147,483,647"),
        ({"run.total_epochs": 1e7}, "run.total_epochs=10000000.0: must be at most 1,000,000"),
        ({"run.eval_every_epochs": 1e7}, "run.eval_every_epochs=10000000.0: must be at most"),
        ({"run.total_steps": 0}, "run.total_steps=0: must be above 0"),
        ({"run.total_steps": None, "run.total_epochs": None}, "neither is set"),
        ({"run.total_steps": 5, "run.total_epochs": 1.0}, "both are set"),
        ({"run.eval_views": 5}, "run.eval_views=5"),
        ({"optimizer.layer_weight_decays": (("conv1", -0.1),)}, "each must be (layer, decay of 0 or more)"),
        ({"optimizer.layer_weight_decays": (("local3", 0.1),)}, "the layers are conv1, conv2"),
        ({"run.seed": -1}, "run.seed=-1"),
        ({"model.columns": 0}, "model.columns=0"),
        ({"model.cross_column_layers": ("conv9",)}, "model.cross_column_layers"),
        ({"model.cross_column_layers": ({},)}, "model.cross_column_layers[0]={}: must be a string"),
        ({"model.widths": ("a", 2, 2, 2, 2, 2)}, "model.widths[0]='a': must be a whole number"),
        ({"model.widths": (True,) * 6}, "model.widths[0]=True: must be a whole number"),
        ({"model.fc_widths": (4096.0, 4096)}, "model.fc_widths[0]=4096.0: must be a whole number"),
        ({"model.padding": (0, 0.5, 1, 1, 1)}, "model.padding[1]=0.5: must be a whole number"),
        ({"model.overlapping_pooling": False, "model.padding": (0, 3, 1, 1, 1)}, "model.padding"),
        ({"more.x": 2}, "more.x: not a key of a section"),
        ({"mesh": {"data": 1}}, "mesh: not a key of a section"),
        ({"data.x": 2}, "data.x: no such key"),
        ({"model.layer2": "pool pool"}, "model.layer2='pool pool'"),
        ({"model.dropout": 1.0}, "model.dropout=1.0"),
    ],
)
def test_a_wrong_value_is_named(overrides, line):
    with pytest.raises(UserError) as caught:
        configs.resolve(default.get_config(), overrides)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_and_missing_keys_are_named():
    values = default.get_config().to_dict()
    values["data"]["batchsize"] = 3
    with pytest.raises(
        UserError, match=r"data\.batchsize: no such key in a config; did you mean data\.batch_size"
    ):
        configs.resolve(values)
    for section, key, meant in (("optimizer", "lr", "learning_rate"), ("model", "lrn", "norm")):
        values = default.get_config().to_dict()
        values[section][key] = 0.1
        with pytest.raises(
            UserError, match=rf"{section}\.{key}: no such .*; did you mean {section}\.{meant}\?"
        ):
            configs.resolve(values)
    values = default.get_config().to_dict()
    del values["run"]["seed"]
    with pytest.raises(UserError, match=r"run\.seed: missing"):
        configs.resolve(values)
    values = default.get_config().to_dict()
    values["mesh"] = 3
    with pytest.raises(UserError, match="mesh=3: must be a section"):
        configs.resolve(values)


def test_one_of_a_pair_takes_the_other_s_place():
    config = configs.resolve(default.get_config(), {"run.total_steps": 7, "run.save_every_epochs": 2.0})
    assert (config.run.total_steps, config.run.total_epochs) == (7, None)
    assert (config.run.save_every_steps, config.run.save_every_epochs) == (None, 2.0)


def test_none_leaves_the_other_of_a_pair_as_it_is():
    given = default.get_config()
    given.run.total_steps, given.run.total_epochs = 7, None
    run = configs.resolve(given, {"run.total_steps": None, "run.total_epochs": 2.0}).run
    assert (run.total_steps, run.total_epochs) == (None, 2.0)
    run = configs.resolve(default.get_config(), {"run.total_steps": None}).run
    assert (run.total_steps, run.total_epochs) == (None, 5.0)


def test_whole_numbers_count_as_floats_and_lists_as_tuples():
    given = {"optimizer.drop_epochs": [4, 5.5], "optimizer.layer_rates": [["fc8", 1, 0]]}
    opt = configs.resolve(default.get_config(), given).optimizer
    assert (opt.drop_epochs, opt.layer_rates) == ((4.0, 5.5), (("fc8", 1.0, 0.0),))
    assert all(type(epoch) is float for epoch in opt.drop_epochs)


@pytest.mark.parametrize("given", [None, 3, [], "data"])
def test_what_is_no_config_at_all(given, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(given))
    with pytest.raises(UserError, match=r"config\.json: .*not a config"):
        configs.of_workdir(tmp_path)


def test_json_round_trip(tmp_path):
    config = configs.resolve(original.get_config())
    (tmp_path / "config.json").write_text(config.to_json())
    assert configs.of_workdir(tmp_path) == config
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not a readable config"):
        configs.of_workdir(tmp_path)


def test_differences_leave_out_what_may_change():
    old = configs.resolve(default.get_config())
    new = configs.resolve(default.get_config(), {"run.total_steps": 7, "run.seed": 3, "mesh.column": 2})
    assert configs.differences(old, new) == {"run.seed": "run.seed: 0 -> 3"}


@pytest.mark.parametrize(("epochs", "steps"), [(1.0, 188), (5.0, 938), (0.5, 94), (4.0, 750)])
def test_epochs_to_steps(epochs, steps):
    # 12,000 images in batches of 64 are 187.5 steps an epoch.
    assert configs.steps_of(epochs, 12_000, 64) == steps


def test_more_epochs_than_steps_can_be_counted():
    run = configs.resolve(default.get_config(), {"run.total_epochs": 1e6}).run
    assert configs.in_steps(run, "total", 12_000, 64) == 187_500_000
    with pytest.raises(
        UserError, match=r"run\.total_epochs=1000000\.0: must be fewer than 2,147,483,647 steps"
    ):
        configs.in_steps(run, "total", 1_281_167, 128)
    assert configs.steps_of(1e6, 1_281_167, 128) == 2**31 - 1  # a drop that never comes


def test_a_config_file_that_lacks_a_key(tmp_path):
    values = json.loads(configs.resolve(default.get_config()).to_json())
    del values["data"]["batch_size"]
    (tmp_path / configs.FILE_NAME).write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"config\.json: data\.batch_size: missing"):
        configs.of_workdir(tmp_path)


def test_each_switch_of_the_net_is_a_key_and_none_is_forgotten():
    """Fields of `AlexNet` are keys of `config.model`, except for those that follow from data and mesh."""
    given = default.get_config()
    assert [key for key in given.model if given.model[key] is not None] == ["variant"]
    derived = {"num_classes", "reads", "column_axis", "column_shards", "parent", "name"}
    assert set(given.model) == {"variant"} | (set(AlexNet.__annotations__) - derived)
    values = {"norm": False, "lrn_k": 1.0, "columns": 1, "layer2": "activation", "widths": (1, 2, 3, 4, 5, 6)}
    given.update({"model": values})
    net = configs.build_model(configs.resolve(given), 10)
    assert {key: getattr(net, key) for key in values} == values
