"""The table of the net against the paper's counts and counts by hand for variants."""

import json

import pytest

from alexnet_jax import create_model
from alexnet_jax.common.errors import UserError
from alexnet_jax.run import summary

# Layer, output, parameters, multiply-accumulates, by hand from the paper's description.
PAPER = [
    ("conv1", [55, 55, 96], 96 * (11 * 11 * 3 + 1), 55 * 55 * 96 * 11 * 11 * 3),
    ("conv2", [27, 27, 256], 256 * (5 * 5 * 48 + 1), 27 * 27 * 256 * 5 * 5 * 48),
    ("conv3", [13, 13, 384], 384 * (3 * 3 * 256 + 1), 13 * 13 * 384 * 3 * 3 * 256),
    ("conv4", [13, 13, 384], 384 * (3 * 3 * 192 + 1), 13 * 13 * 384 * 3 * 3 * 192),
    ("conv5", [13, 13, 256], 256 * (3 * 3 * 192 + 1), 13 * 13 * 256 * 3 * 3 * 192),
    ("fc6", [4096], 4096 * (6 * 6 * 256 + 1), 4096 * 6 * 6 * 256),
    ("fc7", [4096], 4096 * (4096 + 1), 4096 * 4096),
    ("fc8", [1000], 1000 * (4096 + 1), 1000 * 4096),
]


def test_the_paper_s_net():
    table = summary.summarise(create_model("paper"), 224)
    keys = ("name", "output", "parameters", "multiply_accumulates")
    assert [tuple(layer[k] for k in keys) for layer in table["layers"]] == PAPER
    assert table["total"] == {
        "parameters": 60_965_224,
        "multiply_accumulates": 724_406_816,
        "neurons": 659_272,  # "650,000 neurons"
    }
    inputs = {layer["name"]: layer["input"] for layer in table["layers"]}
    assert [name for name, what in inputs.items() if what == "both columns"] == ["conv3", "fc6", "fc7", "fc8"]
    assert [name for name, what in inputs.items() if what == "own column"] == ["conv2", "conv4", "conv5"]
    assert inputs["conv1"] == "the image"


def test_operations_of_an_image_are_counted_without_conv1_s_input_gradient():
    forward = 2 * sum(counted for *_, counted in PAPER)
    weights, inputs = forward, forward - 2 * PAPER[0][3]
    assert summary.operations(create_model("paper"), 224, train=False) == forward == 1_448_813_632
    assert summary.operations(create_model("paper"), 224, train=True) == forward + weights + inputs
    assert forward + weights + inputs == 4_135_610_496


def test_an_unused_output_is_not_counted():
    fc8 = summary.summarise(create_model("paper", num_classes=37), 224)["layers"][-1]
    assert (fc8["output"], fc8["parameters"], fc8["multiply_accumulates"]) == ([37], 37 * 4097, 37 * 4096)


def test_independent_columns_add_their_partial_logits():
    # Run 150: conv2 160 and fc 4096 wide in each column.
    model = create_model(
        "paper", cross_column_layers=(), widths=(96, 320, 384, 384, 256, 256), fc_widths=(8192, 8192)
    )
    layers = {layer["name"]: layer for layer in summary.summarise(model, 224)["layers"]}
    assert layers["conv3"]["parameters"] == 384 * (3 * 3 * 160 + 1)
    assert layers["fc7"]["parameters"] == 8192 * (4096 + 1)
    assert layers["fc8"]["parameters"] == 1000 * (8192 + 1)


def test_as_a_table_and_as_json():
    counted = summary.summarise(create_model("torchvision"), 224)
    lines = summary.as_table(counted).splitlines()
    assert len({len(line) for line in lines}) == 1  # the columns are aligned
    assert len(lines) == 2 + 8 + 1
    assert "61,100,840" in lines[-1]
    assert json.loads(summary.as_json(counted)) == counted


def test_images_too_small_are_an_error():
    with pytest.raises(UserError, match="too small"):
        summary.summarise(create_model("paper"), 40)
