"""Run 148, run 145 without any normalisation (section 3.3): 42.03 % top-1, 19.36 % top-5 error in ten views.

    python main.py --config=configs/run148.py --workdir=DIR

On ILSVRC-2012's validation images, 1.4 and 1.2 points worse than run 145.
The figures are the authors' (layer-params-148.cfg); not run at full scale by us.
"""

import ml_collections

from configs import run145


def get_config() -> ml_collections.ConfigDict:
    """No norms across channels or within maps, and the rates in its notes."""
    config = run145.get_config()
    config.model.norm = False

    config.augment.colour_until_epochs = 69.0

    config.optimizer.drop_epochs = (22.0, 44.0, 86.0)
    config.optimizer.layer_rates = (("conv1.kernel", 69.0, 0.00001), ("conv1", 73.0, 0.0))

    config.run.total_epochs = 97.0
    return config
