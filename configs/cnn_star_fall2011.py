"""CNN* of Table 2, first part: a sixth convolution, trained on all of ImageNet (Fall 2011).

    python main.py --config=configs/cnn_star_fall2011.py --config.data.source=folder:PATH --workdir=DIR

PATH has `train/<WordNet id>/` with the 14.2 million images in 21,841 classes (15 million in 22,000, says the
paper) and a `val/` with some of them. configs/cnn_star.py continues from DIR; no top-1 error was
published for it. Not run at full scale by us.
"""

import ml_collections

from configs import original


def get_config() -> ml_collections.ConfigDict:
    """Run 146-2011 (layers-146-2011.cfg and its notes): 7.8 epochs, the rate a tenth from epoch 6 on.

    The notes end at "8.11295": in epoch 8, counted from 1, at file 11,295 of about 13,864, which
    have 1,024 images each.

    Deviations: the authors started from the convolutions of run 146-2009 (10,000 classes, itself started from
    run 145), with a rate of 0.001 there; this starts from random ones at 0.01. Between fc7 and their 21,843
    outputs they had 2 x 1024 linear units, which are omitted. Otherwise as in configs/original.py.
    """
    config = original.get_config()
    config.data.source = "folder:fall2011"
    config.data.num_classes = 21841

    config.model.conv6 = True

    config.augment.colour_until_epochs = None

    config.optimizer.drop_epochs = (6.0,)
    config.optimizer.layer_rates = (("conv6.bias", 0.0, 0.002),)

    config.run.total_epochs = 7.81
    config.run.eval_every_epochs = 1.0
    config.run.eval_views = 1
    return config
