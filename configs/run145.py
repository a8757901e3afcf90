"""Run 145 on ILSVRC-2012, the paper's 1 CNN of Table 2: 40.66 % top-1, 18.21 % top-5 error in ten views.

    python main.py --config=configs/run145.py --workdir=DIR

The figures are the authors', on the validation images (layer-params-145.cfg); not run at full scale by us.
"""

import ml_collections

from configs import original


def get_config() -> ml_collections.ConfigDict:
    """As run 145-2010, on the 2012 images and with the rates in the notes of this run.

    Deviations: those of configs/original.py, but the biases' rate: here the file ends at 0.02, too.
    """
    config = original.get_config()
    config.data.source = "tfds:imagenet2012"

    config.augment.colour_until_epochs = 67.0

    config.optimizer.drop_epochs = (25.0, 51.0, 79.0)
    config.optimizer.layer_rates = (("conv1.kernel", 67.0, 0.00001), ("conv1", 72.0, 0.0))

    config.run.total_epochs = 91.0
    config.run.eval_every_epochs = 1.0
    return config
