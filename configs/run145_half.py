"""Run 145-half on ILSVRC-2010, one column (section 3.2): 39.17 % top-1, 18.23 % top-5 error, ten views.

    python main.py --config=configs/run145_half.py --config.data.source=tars:PATH --workdir=DIR

conv5 and the fully connected layers are as wide as both columns together; otherwise the net would have half
as many parameters. The figures are the authors', on the test images (layer-params-145-half.cfg); not run at
full scale by us.
"""

import ml_collections

from configs import original


def get_config() -> ml_collections.ConfigDict:
    """layers/layers-145-half.cfg and its notes.

    Deviations: those of configs/original.py. The notes have two drops, while the file ends at 0.00001; the
    third drop is left out, since no epoch is recorded. So is that of the biases of conv1 and conv2, which end
    at 0.002 (those of the other layers at 0.02). The notes freeze conv1 at epoch 72, which the file does not
    show; here it freezes.
    """
    config = original.get_config()
    config.model.columns = 1
    config.model.widths = (48, 128, 192, 192, 256, 256)

    config.augment.colour_until_epochs = 66.0

    config.optimizer.drop_epochs = (20.0, 48.0)
    config.optimizer.layer_rates = (("conv1.kernel", 66.0, 0.00001), ("conv1", 72.0, 0.0))

    config.run.total_epochs = 96.0
    return config
