"""CNN* of Table 2, second part, on ILSVRC-2012: 38.99 % top-1, 16.62 % top-5 error in ten views.

    python main.py --config=configs/cnn_star.py --config.init.path=RUN --workdir=DIR

RUN is a workdir of configs/cnn_star_fall2011.py. The figures are the authors', on the validation images
(layer-params-146-2012-2011.cfg); not run at full scale by us.
"""

import ml_collections

from configs import run145


def get_config() -> ml_collections.ConfigDict:
    """Run 146-2012-2011: starts from the first part except fc8; conv1 nearly frozen, the new fc8 faster.

    Deviations: those of configs/original.py, but the biases' rate: this file ends at 0.02.
    """
    config = run145.get_config()
    config.model.conv6 = True

    config.augment.colour_until_epochs = 38.0

    config.optimizer.learning_rate = 0.001
    config.optimizer.bias_rate_factor = 20.0  # 0.02, as in the other runs
    config.optimizer.drop_epochs = (22.0, 42.0)
    config.optimizer.layer_rates = (
        ("conv1.kernel", 0.0, 0.0001),
        ("conv1.kernel", 5.0, 0.00001),
        ("conv1", 7.0, 0.0),
        ("fc8.kernel", 0.24, 0.01),  # after 300 batches, each a file of 1,024 images
        ("fc8.kernel", 9.0, 0.001),
        ("fc8.kernel", 22.0, 0.0001),
        ("fc8.kernel", 42.0, 0.00001),
        ("conv6.bias", 0.0, 0.022),  # as the file says, perhaps a slip
    )

    config.init.path = "runs/cnn_star_fall2011"

    config.run.total_epochs = 54.0
    return config
