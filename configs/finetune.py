"""New fully connected layers on trained convolutions, for photographs of your own.

    python main.py --config=configs/finetune.py --config.data.source=folder:PHOTOS --config.init.path=WEIGHTS

PHOTOS has `train/<class>/` and `val/<class>/`; WEIGHTS is anything `alexnet_jax.load_pretrained` reads,
with all layers or just the convolutions. Layers that do not fit, such as fc6 at another image size, are new.

Measured with torchvision's convolutions and `--config.model.fc_widths="(256, 256)"` on 245 photographs of
ants and bees, tested on 153: 8.9 % top-1 error (mean of seeds 0, 1, 2; 7.8 to 10.5), in about two minutes on
two CPU cores. With fewer photographs, and rates chosen by cross-validation: experiments/009-transfer.
"""

import ml_collections

from configs import default

CONVOLUTIONS = ("conv1", "conv2", "conv3", "conv4", "conv5")


def get_config() -> ml_collections.ConfigDict:
    """Frozen convolutions and no augmentation, so each image's features are computed once and cached.

    With `--config.augment.mirror=True` or other `optimizer.layer_rates`, such as `(("conv1", 0.0, 0.0),)`,
    nothing is cached and steps take as long as usual. `--config.init.path=` starts from random weights.
    """
    config = default.get_config()

    config.data.source = "folder:photos"
    config.data.batch_size = 32
    config.data.resize_size = 256
    config.data.image_size = 224

    config.model.variant = "torchvision"
    config.model.init_scheme = "torch"  # for the new layers

    config.augment.crop = False
    config.augment.mirror = False
    config.augment.colour = "none"
    config.augment.mean = "colour"  # without init.path; otherwise the mean comes with the weights

    config.optimizer.learning_rate = 0.003  # 0.01 to 0.001 do alike in cross-validation on ants against bees
    config.optimizer.drop_epochs = (14.0,)
    config.optimizer.layer_rates = tuple((name, 0.0, 0.0) for name in CONVOLUTIONS)

    config.init.path = "torchvision"

    config.run.total_epochs = 20.0
    config.run.log_every_steps = 8
    config.run.eval_every_epochs = 2.0
    config.run.save_every_epochs = 20.0
    config.run.keep_checkpoints = 1
    return config
