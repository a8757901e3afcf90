"""Variants, switches and their bounds."""

import math

import numpy as np
import pytest

from alexnet_jax import UserError, create_model
from alexnet_jax.variants import VARIANTS


@pytest.mark.parametrize(
    ("switches", "words"),
    [
        ({"variant": "papr"}, ["model.variant='papr'", "did you mean paper"]),
        ({"variant": "x"}, ["model.variant='x'", "torchvision"]),
        ({"variant": "alexnet"}, ["choose one of paper, original, caffe, caffenet, torchvision"]),
        ({"dropuot": 0.1}, ["model.dropuot", "did you mean dropout"]),
        ({"num_classes": 0}, ["model.num_classes=0"]),
        ({"columns": 0}, ["model.columns=0"]),
        ({"columns": 3, "column_shards": 2}, ["model.columns=3"]),
        ({"columns": 5}, ["model.widths", "multiple of the 5 columns"]),
        ({"widths": (96, 256, 384, 384, 256)}, ["model.widths", "conv6"]),
        ({"widths": (95, 256, 384, 384, 256, 256)}, ["model.widths=(95,", "multiple of the 2"]),
        ({"widths": (0, 256, 384, 384, 256, 256)}, ["model.widths=(0,"]),
        ({"fc_widths": (4096,)}, ["model.fc_widths"]),
        ({"fc_widths": (4096, 4095)}, ["model.fc_widths=(4096, 4095)"]),
        ({"padding": (0, 2, 1, 1)}, ["model.padding", "five"]),
        ({"padding": (0, 2, 1, 1, -1)}, ["model.padding"]),
        ({"cross_column_layers": ("conv9",)}, ["model.cross_column_layers[0]='conv9'", "conv3"]),
        ({"cross_column_layers": ("conv1",)}, ["model.cross_column_layers[0]='conv1'", "conv2"]),
        ({"cross_column_layers": "conv3"}, ["model.cross_column_layers='conv3'"]),
        ({"layer1": "activation norm"}, ["model.layer1='activation norm'", "lrn"]),
        ({"layer2": "pool pool"}, ["model.layer2='pool pool'", "at most once"]),
        ({"layer5": "relu"}, ["model.layer5='relu'", "activation"]),
        ({"activation": "gelu"}, ["model.activation='gelu'", "relu, tanh"]),
        ({"init_scheme": "xavier"}, ["model.init_scheme='xavier'", "paper"]),
        ({"rounding": "2013"}, ["model.rounding='2013'", "2012"]),
        ({"pool_ties": "last"}, ["model.pool_ties='last'", "first, all"]),
        ({"reads": "pool4"}, ["model.reads='pool4'", "pool5"]),
        ({"dropout": 1.0}, ["model.dropout=1.0"]),
        ({"dropout": -0.1}, ["model.dropout=-0.1"]),
        ({"columns": 2.0}, ["model.columns=2.0", "a whole number"]),
        ({"columns": "2"}, ["model.columns='2'", "a whole number"]),
        ({"column_shards": 0}, ["model.column_shards=0"]),
        ({"num_classes": 9.5}, ["model.num_classes=9.5", "a whole number"]),
        ({"num_classes": "9"}, ["model.num_classes='9'", "a whole number"]),
        ({"num_classes": True}, ["model.num_classes=True"]),
        ({"dropout": "a"}, ["model.dropout='a'", "a number"]),
        ({"dropout": math.nan}, ["model.dropout=nan", "finite"]),
        ({"norm": "no"}, ["model.norm='no'", "True or False"]),
        ({"variant": ["paper"]}, ["model.variant=['paper']", "a string"]),
        ({"layer1": ("pool",)}, ["model.layer1=('pool',)", "a string"]),
        ({"fc_widths": ("a", "b")}, ["model.fc_widths[0]='a'", "a whole number"]),
        ({"widths": (96.0, 256, 384, 384, 256, 256)}, ["model.widths[0]=96.0"]),
        ({"cross_column_layers": ({},)}, ["model.cross_column_layers[0]={}", "a string"]),
        (
            {"overlapping_pooling": False, "padding": (0, 2, 1, 1, 2)},
            ["model.padding=(0", "overlapping_pool"],
        ),
        ({"lrn_beta": 0.0}, ["model.lrn_beta=0.0", "norm=False"]),
        ({"lrn_size": 4}, ["model.lrn_size=4", "odd"]),
        ({"lrn_size": -1}, ["model.lrn_size=-1"]),
        ({"lrn_k": 0.0}, ["model.lrn_k=0.0"]),
        ({"lrn_alpha": -1e-4}, ["model.lrn_alpha=-0.0001"]),
    ],
)
def test_impossible_nets(switches, words):
    with pytest.raises(UserError) as error:
        create_model(**switches)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_switches_may_be_numpy_numbers_and_lists():
    model = create_model("paper", np.int64(9), dropout=np.float32(0.5), lrn_k=2, fc_widths=[8, np.int32(8)])
    assert model == create_model("paper", 9, fc_widths=(8, 8))
    assert type(model.lrn_k) is float
    hash(model)


@pytest.mark.parametrize("variant", VARIANTS)
def test_plain_pooling_in_each_variant_and_with_other_paddings(variant):
    model = create_model(variant, overlapping_pooling=False)
    assert create_model("paper", overlapping_pooling=False, padding=model.padding).padding == model.padding
    assert create_model(variant, overlapping_pooling=False, padding=(3, 1, 2, 2, 0)).padding[0] == 3
