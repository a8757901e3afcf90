"""Run 147, run 145 with plain pooling (section 3.4): 41.06 % top-1, 18.51 % top-5 error in ten views.

    python main.py --config=configs/run147.py --workdir=DIR

On ILSVRC-2012's validation images, 0.4 and 0.3 points worse than run 145.
The figures are the authors' (layer-params-147.cfg); not run at full scale by us.
"""

import ml_collections

from configs import run145


def get_config() -> ml_collections.ConfigDict:
    """Pooling of 2 x 2 at stride 2, conv2 padded by 1 and conv5 by 0, and the rates in its notes.

    Deviations: those of configs/original.py (the biases end at 0.002 in this file, too).
    """
    config = run145.get_config()
    config.model.overlapping_pooling = False

    config.augment.colour_until_epochs = None  # its notes do not say that the noise ended

    config.optimizer.drop_epochs = (23.0, 51.0, 79.0)
    config.optimizer.layer_rates = (("conv1", 79.0, 0.0),)

    config.run.total_epochs = 90.0
    return config
