"""Run 170, run 145 with four rates in equal factors: 40.53 % top-1, 18.05 % top-5 error in ten views.

    python main.py --config=configs/run170.py --workdir=DIR

On ILSVRC-2012's validation images. The figures are the authors' (layer-params-170.cfg); not run at
full scale by us.
"""

import ml_collections

from configs import run145


def get_config() -> ml_collections.ConfigDict:
    """The net of run 145; the rate in four steps, by equal factors, to a 250th at the end ("dexp").

    Deviations: the authors also lowered the biases' rate to a tenth halfway; here it stays.
    """
    config = run145.get_config()
    config.augment.colour_until_epochs = 68.0

    config.optimizer.drop_factor = (1 / 250) ** (1 / 3)
    config.optimizer.drop_epochs = (23.75, 47.5, 71.25)  # quarters of 95 epochs
    config.optimizer.layer_rates = (("conv1", 74.0, 0.0),)

    config.run.total_epochs = 95.0
    return config
