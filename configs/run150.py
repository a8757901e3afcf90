"""Run 150, run 145 with independent columns: 41.83 % top-1, 19.33 % top-5 error in ten views.

    python main.py --config=configs/run150.py --workdir=DIR

On ILSVRC-2012's validation images. Its columns are wider in conv2 and fc6, to make up for the missing
cross-column weights. The figures are the authors' (layer-params-150.cfg); not run at
full scale by us.
"""

import ml_collections

from configs import run145


def get_config() -> ml_collections.ConfigDict:
    """conv2 with 160 filters a column, fc6 with 4096 and fc7 with 2048 units; partial logits are added."""
    config = run145.get_config()
    config.model.cross_column_layers = ()
    config.model.widths = (96, 320, 384, 384, 256, 256)
    config.model.fc_widths = (8192, 4096)

    config.augment.colour_until_epochs = 66.0

    config.optimizer.drop_epochs = (25.0, 49.0, 79.0)
    config.optimizer.layer_rates = (("conv1.kernel", 66.0, 0.00001), ("conv1", 72.0, 0.0))

    config.run.total_epochs = 92.0
    return config
