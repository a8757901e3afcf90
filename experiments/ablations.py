"""The paper's ablations, and run 145's, on CIFAR-10 and a net narrow enough for two cores."""

# The images, at 64 pixels (or with --source=folder:cifar10, which has train/ and test/):
#     python -m alexnet_jax prepare --source=tfds:cifar10 --out=runs/cifar10 --resize_size=64
CONFIG = "configs/default.py"
PARENT = {
    "data.source": "prepared:runs/cifar10",
    "data.resize_size": 64,
    "data.image_size": 56,
    "data.batch_size": 128,
    "model.widths": (16, 48, 64, 64, 48, 48),  # a sixth of the paper's
    "model.fc_widths": (512, 512),  # an eighth
    "model.init_scale": "fan_in",  # with run 145's own std, made for full widths, narrow nets stay at chance
    "optimizer.learning_rate": 0.01,
    "run.total_epochs": 6.0,
    "optimizer.drop_epochs": (4.5, 5.5),
    "run.eval_every_epochs": 1.0,
    "run.save_every_epochs": 6.0,
    "run.keep_checkpoints": 1,
    "run.log_every_steps": 100,
}
SEEDS = (0, 1, 2, 3, 4)
larger = {"data.image_size": 72, "data.resize_size": 80}  # 2 x 2 pooling leaves nothing of 56 pixels
# The rows that the paper is known for come first: what is cut short has those. Rates other than the parent's
# are the best of `ablation_rates.py`.
ROWS = {
    "no norm": {"model.norm": False},
    "no dropout": {"model.dropout": 0.0, "optimizer.learning_rate": 0.005},
    "no crops": {"augment.crop": False},
    "no mirrors": {"augment.mirror": False},
    "no colour noise": {"augment.colour": "none"},
    "biases 0": {"model.hidden_bias": 0.0},
    "tanh": {  # with biases of 1 it stays at chance
        "model.activation": "tanh",
        "model.hidden_bias": 0.0,
        "optimizer.learning_rate": 0.04,
    },
    "without conv3": {"model.removed_layers": ("conv3",)},
    "without conv4": {"model.removed_layers": ("conv4",)},
    "half net": {"model.columns": 1, "model.widths": (8, 24, 32, 32, 48, 48)},
    "one column, same cost": {"model.columns": 1, "model.widths": (16, 32, 43, 43, 48, 48)},
    "independent columns": {  # widened as in run 150
        "model.cross_column_layers": (),
        "model.widths": (16, 60, 64, 64, 48, 48),
        "model.fc_widths": (1024, 512),
    },
    "72 pixels": larger,
    "plain pooling": {**larger, "model.overlapping_pooling": False},
    "no weight decay": {"optimizer.weight_decay": 0.0},
    "without conv2": {"model.removed_layers": ("conv2",)},
    "without conv5": {"model.removed_layers": ("conv5",)},
    "no norm after conv1": {"model.layer1": "activation pool"},
    "no norm after conv2": {"model.layer2": "activation pool"},
    "second norm below the ReLU": {"model.layer2": "lrn map_norm pool activation"},
    "mean colour": {"augment.mean": "colour"},
    "init paper": {"model.init_scheme": "paper", "optimizer.learning_rate": 0.02},
    "init he": {"model.init_scheme": "he", "model.init_scale": "none"},  # follows the fan-in by itself
    "gradient to the first maximum": {"model.pool_ties": "first"},
}
AGAINST = {"plain pooling": "72 pixels", "tanh": "biases 0"}
# Points of % of top-1 and top-5 error on ILSVRC above the net that each was compared with there.
PAPER = {
    "no norm": (1.4, 1.2),
    "no colour noise": (1.0, None),  # section 4.1: "over 1 %"
    "without conv2": (2.0, None),  # section 7: any middle layer, "about 2 %"
    "without conv3": (2.0, None),
    "without conv4": (2.0, None),
    "without conv5": (2.0, None),
    "half net": (1.7, 1.2),
    "independent columns": (1.17, 1.12),  # run 150 against 145
    "plain pooling": (0.4, 0.3),
    "second norm below the ReLU": (0.44, 0.46),  # run 166 against 145
    "no norm after conv2": (-0.17, -0.09),  # run 167 against 145
}
TRAINING_ERROR = ("no weight decay",)  # section 5: weight decay lowers the error in training
GROUPS = {
    "3.1 ReLU": ("tanh",),
    "3.2 Two columns": ("one column, same cost", "half net", "independent columns"),
    "3.3 Normalisation": (
        "no norm",
        "no norm after conv1",
        "no norm after conv2",
        "second norm below the ReLU",
    ),
    "3.4 Overlapping pooling": ("plain pooling",),
    "4.1 Augmentation": ("no crops", "no mirrors", "no colour noise", "mean colour"),
    "4.2 Dropout": ("no dropout",),
    "5 Learning": ("no weight decay", "biases 0", "init paper", "init he"),
    "7 Depth": ("without conv2", "without conv3", "without conv4", "without conv5"),
    "2012 code": ("gradient to the first maximum", "72 pixels"),
}
ENSEMBLES = {
    "3 nets": {"parent": (0, 1, 2)},
    "5 nets": {"parent": (0, 1, 2, 3, 4)},
}
