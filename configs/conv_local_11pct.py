"""Section 3.3's four-layer net on CIFAR-10, with normalisation: 11 % top-1 error in nine views (theirs).

    python -m alexnet_jax prepare --source=tfds:cifar10 --out=cifar10 --resize_size=32
    python main.py --config=configs/conv_local_11pct.py --config.data.source=prepared:cifar10 --workdir=DIR

cuda-convnet's `layers-conv-local-11pct.cfg` and `layer-params-conv-local-11pct.cfg`; the net without norms is
configs/conv_local_13pct.py. The notes of the parameter file: about 350 epochs on four fifths of the training
images, 150 on all of them, then 10 at a tenth of the rate and 10 at a hundredth; nine views at test. This
config has the same number of epochs, all of them on all images: 16 % more updates.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    """Net, data and schedule of the two files."""
    config = default.get_config()
    config.model.variant = "conv-local-11pct"

    config.data.source = "prepared:cifar10"
    config.data.order = "fixed"  # files of 10,000 images, the same every epoch
    config.data.batch_size = 128
    config.data.resize_size = 32
    config.data.image_size = 24  # --crop-border=4

    config.augment.colour = "none"

    config.optimizer.learning_rate = 0.001
    config.optimizer.weight_decay = 0.004
    config.optimizer.layer_weight_decays = (("conv1", 0.0), ("conv2", 0.0), ("fc10", 0.01))
    config.optimizer.bias_rate_drops = False  # only epsW is lowered
    config.optimizer.drop_epochs = (500.0, 510.0)

    config.run.total_epochs = 520.0
    config.run.log_every_steps = 100
    config.run.eval_every_epochs = 10.0
    config.run.save_every_epochs = 10.0
    config.run.eval_views = 9  # --multiview-test=1
    return config
