"""Run 145-2010, the code that made Table 1: 37.47 % top-1, 17.00 % top-5 error, as its notes say.

    python main.py --config=configs/original.py --config.data.source=tars:PATH --workdir=DIR

The same images as configs/ilsvrc2010.py, with everything in which the released code differs from the
paper's words: the order of layers, the within-map norm, the scale of the norms, the initial weights, the
colour noise, the crops and the whole schedule. Not run at full scale by us: the figures are the authors'.
"""

import ml_collections

from configs import ilsvrc2010


def get_config() -> ml_collections.ConfigDict:
    """layers/layers-145.cfg and layer-params-145.cfg of the released code."""
    config = ilsvrc2010.get_config()

    config.model.variant = "original"

    config.augment.run_length = 32  # one crop and one flip for 32 images in a row
    config.augment.colour = "original"
    config.augment.colour_until_epochs = 68.0

    config.optimizer.schedule = "epochs"
    config.optimizer.drop_epochs = (23.0, 51.0, 78.0)  # 0.01, 0.001, 0.0001, 0.00001
    config.optimizer.bias_rate_drops = False  # 0.02 "for most of the run"; when it ended is not recorded
    config.optimizer.layer_rates = (("conv1", 68.0, 0.00001), ("conv1", 72.0, 0.0))  # frozen from 72

    config.run.total_epochs = 93.0
    return config
