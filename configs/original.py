"""Run 145-2010, the code that made Table 1: 37.47 % top-1, 17.00 % top-5 error, as its notes say.

    python main.py --config=configs/original.py --config.data.source=tars:PATH --workdir=DIR

The same images as configs/ilsvrc2010.py, with all differences of the released code from the paper's
text: the order of layers, the within-map norm, the scale of the norms, the initial weights, the
colour noise, the crops and the schedule (but see `get_config`). Not run at full scale by us: the
figures are the authors'.
"""

import ml_collections

from configs import ilsvrc2010


def get_config() -> ml_collections.ConfigDict:
    """layers/layers-145.cfg and layer-params-145-2010.cfg of the released code.

    Deviations: the mean colour is subtracted if the source has no mean image (prepared records have one: set
    augment.mean=image); broken images keep their position with weight 0 instead of being dropped; the biases
    keep a rate of 0.02, while the file ends at 0.002 without saying since when. The notes say in which epoch
    (counted from 1) a rate changed, not at which batch; here it changes at the end of that epoch.
    """
    config = ilsvrc2010.get_config()

    config.data.order = "fixed"  # 2012 read its files of 1,024 shuffled images in the same order each epoch

    config.model.variant = "original"

    config.augment.mean_crop = "centre"  # one fixed patch of the mean image for all crops and views
    config.augment.run_length = 32  # 32 consecutive images share a crop and a flip
    config.augment.colour = "original"
    config.augment.colour_until_epochs = 68.0

    config.optimizer.bias_rate_drops = False  # 0.02; on these images its end is not recorded
    # Only the rate of conv1's weights (epsW) falls; its biases keep theirs until both are frozen.
    config.optimizer.layer_rates = (("conv1.kernel", 68.0, 0.00001), ("conv1", 72.0, 0.0))
    return config
