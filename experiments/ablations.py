"""The paper's ablations, and run 145's, on a net narrow enough for two cores: Fashion-MNIST at 72 pixels."""

CONFIG = "configs/default.py"
PARENT = {
    "data.resize_size": 82,
    "data.image_size": 72,  # the smallest size at which 2 x 2 pooling leaves pixels for fc6
    "data.batch_size": 16,
    "model.widths": (16, 64, 96, 96, 64, 64),  # a quarter of the paper's, conv1 a sixth
    "model.fc_widths": (1024, 1024),
    "model.init_scale": "fan_in",  # with run 145's own std, made for full widths, narrow nets stay at chance
    "optimizer.learning_rate": 0.005,  # at 0.01 the net without dropout stays at chance
    "run.total_epochs": 1.25,
    "optimizer.drop_epochs": (1.0,),
    "run.eval_every_epochs": 0.25,
    "run.save_every_epochs": 2.0,
    "run.keep_checkpoints": 1,
    "run.log_every_steps": 75,
}
SEEDS = (0, 1, 2)
ROWS = {
    # Normalisation: section 3.3, runs 148 and 166.
    "no norm": {"model.norm": False},
    "second norm below the ReLU": {"model.layer2": "lrn map_norm pool activation"},
    # Pooling: section 3.4, run 147.
    "plain pooling": {"model.overlapping_pooling": False},
    # Columns: section 3.2, runs 145-half and 150.
    "one column": {"model.columns": 1},
    "silent columns": {
        "model.cross_column_layers": (),
        "model.widths": (16, 80, 96, 96, 64, 64),
        "model.fc_widths": (2048, 1024),
    },
    "half net": {"model.columns": 1, "model.widths": (8, 32, 48, 48, 64, 64)},
    # Activation and regularisation: sections 3.1, 4.1, 4.2.
    "tanh": {"model.activation": "tanh"},
    "no dropout": {"model.dropout": 0.0},
    "no weight decay": {"optimizer.weight_decay": 0.0},  # section 5: it lowers the error in training
    "no colour noise": {"augment.colour": "none"},  # "over 1 %" of top-1
    "no mirror": {"augment.mirror": False},
    "no crops": {"augment.crop": False},
    "mean colour": {"augment.mean": "colour"},
    # What the 2012 code does and the paper does not say, the other way round.
    "mean cut with the view": {"augment.mean_crop": "same"},
    "gradient to the first maximum": {"model.pool_ties": "first"},
    "fixed order": {"data.order": "fixed"},
    # Initial weights and biases: section 5.
    "init paper": {"model.init_scheme": "paper"},
    "init caffe": {"model.init_scheme": "caffe"},
    "init he": {"model.init_scheme": "he", "model.init_scale": "none"},  # follows the fan-in by itself
    "biases 0.1": {"model.hidden_bias": 0.1},
    # Depth: section 7.
    "without conv2": {"model.removed_layers": ("conv2",)},
    "without conv3": {"model.removed_layers": ("conv3",)},
    "without conv4": {"model.removed_layers": ("conv4",)},
    "without conv5": {"model.removed_layers": ("conv5",)},
}
# Points of % of top-1 and top-5 error on ILSVRC above the net that each was compared with there.
PAPER = {
    "no norm": (1.4, 1.2),
    "second norm below the ReLU": (0.44, 0.46),  # run 166 against 145
    "plain pooling": (0.4, 0.3),
    "silent columns": (1.17, 1.12),  # run 150 against 145
    "half net": (1.7, 1.2),
}
