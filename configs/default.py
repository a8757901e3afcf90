"""The paper's net, run 145, on the images in the repository, scaled down for a laptop.

    python main.py --config=configs/default.py

12,000 training and 2,000 test images of Fashion-MNIST in 10 classes, enlarged to 73 x 73; the net sees crops
of 64 x 64. On two CPU cores: two to six minutes, 1.7 to 1.9 GB of memory, 15.38 % top-1 error
(mean of seeds 0 to 2; 15.00 to 16.15). Another kind of processor, number of cores or
version sums in another order and may end up to a point away: 14.7 to 16.2 % so far.
"""

import ml_collections
from ml_collections.config_dict import placeholder

from alexnet_jax.config import model_placeholders


def get_config() -> ml_collections.ConfigDict:
    """A value for every key, with the reason; alexnet_jax/config.py explains the keys.

    `placeholder(type)` is None until set to a value of that type.
    """
    config = ml_collections.ConfigDict()

    config.data = {
        "source": "embedded",
        "data_dir": placeholder(str),  # ~/tensorflow_datasets
        "num_classes": placeholder(int),  # the source's
        "order": "shuffled",  # the paper does not say; fixed: the same each epoch, as in the 2012 code
        "batch_size": 64,  # the paper's 128 would leave too few steps for so few images
        "micro_batches": 1,
        "resize_size": 73,  # 256 for crops of 224 in the paper
        "image_size": 64,
        "max_bad_fraction": 0.01,
    }
    config.model = {
        "variant": "original",  # run 145; or paper (as written), caffe, caffenet, torchvision
        # All other switches, such as norm or columns, are fields of `AlexNet` (alexnet_jax/model.py). Nets of
        # other widths need init_scale="fan_in": run 145's std is made for the full widths kept here.
        **model_placeholders(),
    }
    config.augment = {
        "crop": True,  # section 4.1
        "mirror": True,  # section 4.1
        "run_length": 1,  # 32 in the 2012 code
        "colour": "original",  # section 4.1, as in the 2012 code
        "colour_until_epochs": placeholder(float),  # until the end
        "mean": "image",  # section 2
        "mean_crop": "centre",  # as in the 2012 code; same: subtracted from the stored image, as in section 2
    }
    config.optimizer = {
        "learning_rate": 0.01,  # section 5
        "momentum": 0.9,  # section 5
        "weight_decay": 0.0005,  # section 5
        "layer_weight_decays": (),  # as (("conv1", 0.0),): no weight decay in conv1
        "bias_rate_factor": 2.0,  # layer-params-145.cfg
        "bias_rate_drops": True,  # False in run 145
        "schedule": "epochs",  # plateau automates section 5
        "drop_factor": 0.1,  # section 5
        "drop_epochs": (4.0,),  # there is only time for one drop
        "patience_evals": 3,
        "max_drops": 3,  # section 5: "reduced three times prior to termination"
        "layer_rates": (),  # as (("conv1.kernel", 68.0, 0.00001),): the rate of conv1's weights from then on
    }
    config.mesh = {
        "data": -1,  # all devices split the batch
        "column": 1,  # each device holds both columns
    }
    config.init = {
        "path": placeholder(str),  # random weights; configs/finetune.py starts from trained ones
        "layers": (),  # of trained weights: all convolutions, and fc6 to fc8 as far as they fit
        "mean": placeholder(str),  # as ilsvrc_2012_mean.npy
    }
    config.run = {
        "seed": 0,  # for the initial weights, the order of the images and the randomness in steps
        "total_steps": placeholder(int),  # set one of each pair _steps and _epochs
        "total_epochs": 5.0,  # two to six minutes on two CPU cores
        "log_every_steps": 20,  # metrics are means over these steps
        "profile_steps": 0,  # for TensorBoard or Perfetto
        "wandb_project": placeholder(str),
        "eval_every_steps": placeholder(int),
        "eval_every_epochs": 1.0,
        "eval_views": 1,
        "save_every_steps": placeholder(int),
        "save_every_epochs": 1.0,  # also at each new best, and at the end
        "save_every_minutes": placeholder(float),
        "keep_checkpoints": 3,
        "keep_every_epochs": placeholder(float),
        "max_seconds": placeholder(float),  # for jobs with a time limit
        "allow_changes": False,
    }
    return config
