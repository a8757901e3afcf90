"""CNN* by way of Fall 2009, on ILSVRC-2012: 39.10 % top-1, 16.88 % top-5 error in ten views.

    python main.py --config=configs/cnn_star_2009.py --config.init.path=RUN --workdir=DIR

RUN is a workdir of configs/cnn_star_fall2009.py. The figures are the authors', on the validation images
(layer-params-146-2012-2009.cfg), and not in the paper; not run at full scale by us.
"""

import ml_collections

from configs import cnn_star


def get_config() -> ml_collections.ConfigDict:
    """Run 146-2012-2009: as the other CNN*, with a shorter life of conv1 and no rate of fc8's own.

    Deviations: those of configs/cnn_star.py.
    """
    config = cnn_star.get_config()

    config.optimizer.layer_rates = (
        ("conv1.kernel", 0.0, 0.0001),
        ("conv1.kernel", 3.0, 0.00001),
        ("conv1", 4.0, 0.0),
        ("conv6.bias", 0.0, 0.002),
    )

    config.init.path = "runs/cnn_star_fall2009"

    config.run.total_epochs = 52.0
    return config
