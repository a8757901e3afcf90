"""The paper's net on ILSVRC-2010 (Table 1): 37.5 % top-1 and 17.0 % top-5 test error, published.

    python main.py --config=configs/ilsvrc2010.py --config.data.source=tars:PATH --workdir=DIR

PATH holds the official archives of ILSVRC-2010 with the labels of its test images. 1.26 million training
images; the authors stopped after 93 epochs, five to six days on two GTX 580. Not run at full scale by us:
the figures are the paper's.
"""

import ml_collections

from configs import imagenet2012


def get_config() -> ml_collections.ConfigDict:
    """As for ILSVRC-2012, on the images of 2010, the only set whose test labels were published."""
    config = imagenet2012.get_config()
    config.data.source = "tars:ILSVRC2010"
    return config
