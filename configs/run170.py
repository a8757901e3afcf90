"""Run 170, run 145 with four rates in equal factors: 40.53 % top-1, 18.05 % top-5 error in ten views.

    python main.py --config=configs/run170.py --workdir=DIR

On ILSVRC-2012's validation images. The figures are the authors' (layer-params-170.cfg); not run at
full scale by us.
"""

import ml_collections

from configs import run145


def get_config() -> ml_collections.ConfigDict:
    """The net of run 145; four rates by equal factors, to a 250th at the end ("dexp", lr.cu:132-151).

    In its second half the biases' rate is a tenth. 95 epochs: layer-params-170.cfg:196 and
    layer-params-169.cfg:204. Deviations: those of configs/original.py, but the biases' rate.
    """
    config = run145.get_config()
    config.augment.colour_until_epochs = 68.0

    config.optimizer.drop_factor = (1 / 250) ** (1 / 3)
    config.optimizer.drop_epochs = (23.75, 47.5, 71.25)  # quarters of 95 epochs
    config.optimizer.layer_rates = (("*.bias", 47.5, 0.002), ("conv1", 74.0, 0.0))

    config.run.total_epochs = 95.0
    return config
