"""Run 141-2009 on ILSVRC-2012: 39.56 % top-1, 17.21 % top-5 error in ten views (41.59 / 18.68 in one).

    python main.py --config=configs/run141_2012.py --config.init.path=RUN --workdir=DIR

RUN is a workdir of configs/run141_fall2009.py. The figures are the authors', on the validation images
(layer-params-141-2009.cfg:212-214), and not in the paper; not run at full scale by us.
"""

import ml_collections

from configs import run141

SLOW = ("conv1", "conv2")


def get_config() -> ml_collections.ConfigDict:
    """All layers but fc8 from Fall 2009 (layers-141-2009-2012.cfg, layer-params-141-2009.cfg:196-210).

    Deviations: those of configs/run145.py; the biases keep 0.02, while the file ends at 0.002 without saying
    since when.
    """
    config = run141.get_config()

    config.augment.colour_until_epochs = 26.0

    config.optimizer.learning_rate = 0.001
    config.optimizer.bias_rate_factor = 20.0
    config.optimizer.drop_epochs = (13.0, 43.0)
    config.optimizer.layer_rates = (
        *((f"{name}.kernel", 26.0, 0.00001) for name in SLOW),
        *((name, 32.0, 0.0) for name in SLOW),
    )

    config.init.path = "runs/run141_fall2009"

    config.run.total_epochs = 54.0
    return config
