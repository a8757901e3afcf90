"""Run 141 on ILSVRC-2012: conv2 also sees the image itself, blurred. No top-1 error was published.

    python main.py --config=configs/run141.py --workdir=DIR

The first of three trainings: configs/run141_fall2009.py continues from DIR, and configs/run141_2010.py or
run141_2012.py from that. Not run at full scale by us.
"""

import ml_collections

from configs import run145


def get_config() -> ml_collections.ConfigDict:
    """layers/layers-141.cfg and layer-params-141.cfg of the released code: 61,460,456 parameters.

    Deviations: those of configs/run145.py.
    """
    config = run145.get_config()
    config.model.low_resolution = True
    config.model.widths = (64, 256, 384, 384, 256, 256)
    config.model.conv6 = True

    config.augment.colour_until_epochs = None

    config.optimizer.drop_epochs = (23.0, 48.0)
    config.optimizer.layer_rates = ()

    config.run.total_epochs = 60.0
    return config
