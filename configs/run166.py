"""Run 166, the second norm below the ReLU: 41.10 % top-1, 18.67 % top-5 error in ten views.

    python main.py --config=configs/run166.py --workdir=DIR

On ILSVRC-2012's validation images. It derives from run 159, which has another schedule than run 145, so the
difference to run 145 is not the norm's place alone. The figures are the authors' (layer-params-166.cfg); not
run at full scale by us.
"""

import ml_collections

from configs import run145


def get_config() -> ml_collections.ConfigDict:
    """conv2, norm across channels, norm within maps, pooling, ReLU; the rate to a thousandth in the end.

    Four rates by equal factors, each for a quarter of the run (lr.cu:132-151); in its second half the biases'
    rate is a tenth. Deviations: no file names this run's length; the 95 epochs are those of the same family
    (layer-params-169.cfg:204). Otherwise as in configs/original.py.
    """
    config = run145.get_config()
    config.model.layer2 = "lrn map_norm pool activation"

    config.augment.colour_until_epochs = 64.0

    config.optimizer.drop_epochs = (23.75, 47.5, 71.25)  # quarters of 95 epochs
    config.optimizer.layer_rates = (("*.bias", 47.5, 0.002), ("conv1", 73.0, 0.0))

    config.run.total_epochs = 95.0
    return config
