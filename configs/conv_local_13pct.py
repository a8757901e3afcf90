"""Section 3.3's four-layer net on CIFAR-10, without normalisation: 13 % top-1 error in nine views (theirs).

    python main.py --config=configs/conv_local_13pct.py --config.data.source=prepared:cifar10 --workdir=DIR

cuda-convnet's `layers-conv-local-13pct.cfg` and `layer-params-conv-local-13pct.cfg`. Its page on methodology:
100 epochs on four fifths of the training images, 40 on all of them, then 10 at a tenth of the rate and 10 at
a hundredth. Preparing the images and the deviation as in configs/conv_local_11pct.py.
"""

import ml_collections

from configs import conv_local_11pct


def get_config() -> ml_collections.ConfigDict:
    """The 11 % net's config without norms, with fewer filters in local3 and a shorter schedule."""
    config = conv_local_11pct.get_config()
    config.model.variant = "conv-local-13pct"

    config.optimizer.layer_weight_decays = (("conv1", 0.0), ("conv2", 0.0))
    config.optimizer.drop_epochs = (140.0, 150.0)

    config.run.total_epochs = 160.0
    return config
