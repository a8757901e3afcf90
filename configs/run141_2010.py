"""Run 141-2009 on ILSVRC-2010: 35.67 % top-1, 15.49 % top-5 error.

    python main.py --config=configs/run141_2010.py --config.data.source=tars:PATH \
        --config.init.path=RUN --workdir=DIR

PATH is that of configs/ilsvrc2010.py and RUN a workdir of configs/run141_fall2009.py. The figures are the
authors' (layer-params-141-2009.cfg:194) and not in the paper. On which images and in how many views is not
recorded; the digits fit 150,000 images, as in the test set. Not run at full scale by us.
"""

import ml_collections

from configs import run141_2012


def get_config() -> ml_collections.ConfigDict:
    """All layers but fc8 from Fall 2009 (layers-141-2009-2010.cfg, layer-params-141-2009.cfg:181-193).

    Deviations: those of configs/run141_2012.py.
    """
    config = run141_2012.get_config()
    config.data.source = "tars:ILSVRC2010"

    config.augment.colour_until_epochs = 30.0

    config.optimizer.drop_epochs = (14.0, 47.0)
    config.optimizer.layer_rates = (
        *((f"{name}.kernel", 30.0, 0.00001) for name in run141_2012.SLOW),
        *((name, 36.0, 0.0) for name in run141_2012.SLOW),
    )

    config.run.eval_every_epochs = 10.0  # 150,000 images in ten views each
    return config
