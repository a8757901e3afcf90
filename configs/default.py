"""The paper's net on the images that come with the repository, at a size for a laptop.

    python main.py --config=configs/default.py

12,000 training and 2,000 test images of Fashion-MNIST in 10 classes, enlarged to 73 x 73, of which the
net sees patches of 64 x 64. On two CPU cores: under five minutes to about 15 % top-1 error.
"""

import ml_collections
from ml_collections.config_dict import placeholder


def get_config() -> ml_collections.ConfigDict:
    """Every key there is, with its unit or reason; `placeholder(type)` is None until set to that type."""
    config = ml_collections.ConfigDict()

    config.data = {
        "source": "embedded",
        "data_dir": placeholder(str),  # where TFDS looks; None for ~/tensorflow_datasets
        "num_classes": placeholder(int),  # None for what the source has
        "batch_size": 64,  # images a step; the paper's 128 would leave too few steps of so few images
        "stored_size": 73,  # pixels; 256 for 224 in the paper
        "image_size": 64,  # pixels
        "max_bad_fraction": 0.01,  # of the images seen; beyond, the run stops
    }
    config.model = {
        "variant": "paper",
        # Switches, None for the variant's own; alexnet_jax/model.py says what each does.
        "columns": placeholder(int),
        "talk": placeholder(tuple),
        "widths": placeholder(tuple),
        "fc_widths": placeholder(tuple),
        "layer1": placeholder(str),
        "layer2": placeholder(str),
        "layer5": placeholder(str),
        "activation": placeholder(str),
        "norm": placeholder(bool),
        "lrn_k": placeholder(float),
        "lrn_alpha": placeholder(float),
        "lrn_beta": placeholder(float),
        "lrn_size": placeholder(int),
        "lrn_across_columns": placeholder(bool),
        "overlapping_pooling": placeholder(bool),
        "padding": placeholder(tuple),
        "sizes": placeholder(str),
        "conv6": placeholder(bool),
        "dropout": placeholder(float),
        "dropout_before": placeholder(bool),
        "dropout_scaled": placeholder(bool),
        "init_scheme": "original",  # run 145's 0.03 for conv3 to conv5: 0.01 everywhere learns later
        "hidden_bias": placeholder(float),
    }
    config.augment = {
        "crop": True,  # section 4.1
        "mirror": True,  # section 4.1
        "run_length": 1,  # images in a row with the same crop and flip; 32 in the 2012 code
        "colour": "original",  # section 4.1, as the 2012 code has it
        "colour_until_epochs": placeholder(float),  # None: to the end
        "mean": "image",  # section 2
    }
    config.optimizer = {
        "learning_rate": 0.01,  # section 5
        "momentum": 0.9,  # section 5
        "weight_decay": 0.0005,  # section 5
        "bias_rate_factor": 2.0,  # layer-params-145.cfg
        "bias_rate_drops": True,
        "schedule": "epochs",
        "drop_factor": 0.1,  # section 5
        "drop_epochs": (4.0,),  # the only drop there is time for
        "patience_evals": 3,  # for schedule=plateau
        "max_drops": 3,  # section 5: "reduced three times prior to termination"
        "min_gain": 0.1,  # points of %
        "final_factor": 0.001,  # for schedule=exponential
        "layer_rates": (),
    }
    config.mesh = {
        "data": -1,  # all devices split the batch,
        "column": 1,  # both columns on each
    }
    config.init = {
        "path": placeholder(str),  # trained weights to start from, as in configs/finetune.py
    }
    config.run = {
        "seed": 0,
        "total_steps": placeholder(int),
        "total_epochs": 5.0,
        "log_every_steps": 20,
        "eval_every_steps": placeholder(int),
        "eval_every_epochs": 1.0,
        "eval_views": 1,  # 1: central patch; 10: four corners, centre, and their mirrors
        "save_every_steps": placeholder(int),
        "save_every_epochs": 1.0,
        "save_every_minutes": placeholder(float),  # also by the clock
        "keep_checkpoints": 3,  # the newest; the best by validation error stays, too
        "keep_every_epochs": placeholder(float),  # one each so many stays for good
        "max_seconds": placeholder(float),  # for jobs with a time limit: saves and stops before
        "max_step_backs": 0,  # on divergence: back to the last checkpoint at half the rate, so often
        "allow_changes": False,  # goes on in a workdir of another config
    }
    return config
