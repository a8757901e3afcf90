"""The paper's net, run 145, on the images that come with the repository, at a size for a laptop.

    python main.py --config=configs/default.py

12,000 training and 2,000 test images of Fashion-MNIST in 10 classes, enlarged to 73 x 73, of which the
net sees patches of 64 x 64. On two CPU cores: two minutes, 1.5 GB at
the peak, 15.35 % top-1 error (mean of seeds 0 to 2; 15.10 to 15.75).
"""

import ml_collections
from ml_collections.config_dict import placeholder

from alexnet_jax.config import model_placeholders


def get_config() -> ml_collections.ConfigDict:
    """Every key there is, with its unit or reason; `placeholder(type)` is None until set to that type."""
    config = ml_collections.ConfigDict()

    config.data = {
        "source": "embedded",
        "data_dir": placeholder(str),  # where TFDS looks; None for ~/tensorflow_datasets
        "num_classes": placeholder(int),  # None for what the source has
        "batch_size": 64,  # images a step; the paper's 128 would leave too few steps of so few images
        "micro_batches": 1,  # parts of a batch that are computed one after another, to save memory
        "resize_size": 73,  # pixels; 256 for 224 in the paper
        "image_size": 64,  # pixels
        "max_bad_fraction": 0.01,  # of the images seen; beyond, the run stops
    }
    config.model = {
        "variant": "original",  # run 145; or paper (its words), caffe, caffenet, torchvision
        # All other switches, such as norm or columns, are fields of `AlexNet` (alexnet_jax/model.py).
        **model_placeholders(),
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
        "bias_rate_drops": True,  # False: stays where it began, as for most of run 145
        "schedule": "epochs",  # or plateau (section 5, as a rule), constant
        "drop_factor": 0.1,  # section 5
        "drop_epochs": (4.0,),  # the only drop there is time for
        "patience_evals": 3,  # for schedule=plateau
        "max_drops": 3,  # section 5: "reduced three times prior to termination"
        "layer_rates": (),  # ("conv1", 68.0, 0.00001): from epoch 68 on conv1 has this rate of its own
    }
    config.mesh = {
        "data": -1,  # all devices split the batch,
        "column": 1,  # both columns on each
    }
    config.init = {
        "path": placeholder(str),  # trained weights to start from, as in configs/finetune.py
    }
    config.run = {
        "seed": 0,  # of the first weights, the order of the images, and all that is random in a step
        "total_steps": placeholder(int),  # of each pair _steps and _epochs one is set
        "total_epochs": 5.0,  # two minutes of two CPU cores
        "log_every_steps": 20,  # metrics are means over so many steps
        "profile_steps": 0,  # so many steps are recorded for TensorBoard or Perfetto
        "eval_every_steps": placeholder(int),
        "eval_every_epochs": 1.0,  # on all test images
        "eval_views": 1,  # 1: central patch; 10: four corners, centre, and their mirrors
        "save_every_steps": placeholder(int),
        "save_every_epochs": 1.0,  # and at each new best, and at the end
        "save_every_minutes": placeholder(float),  # also by the clock
        "keep_checkpoints": 3,  # the newest; the best by validation error stays, too
        "keep_every_epochs": placeholder(float),  # one each so many stays for good
        "max_seconds": placeholder(float),  # for jobs with a time limit: saves and stops before
        "allow_changes": False,  # goes on in a workdir of another config
    }
    return config
