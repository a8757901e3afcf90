"""CNN* by way of Fall 2009, first part: a sixth convolution, trained on 10,184 classes.

    python main.py --config=configs/cnn_star_fall2009.py --config.data.source=folder:PATH \
        --config.init.path=RUN --workdir=DIR

PATH has `train/<WordNet id>/` with the 8.9 million images of Fall 2009 and a `val/` with some of them; RUN is
a workdir of configs/run145.py. configs/cnn_star_2009.py continues from DIR; no top-1 error was published for
this part. Not run at full scale by us.
"""

import ml_collections

from configs import original

CONVOLUTIONS = ("conv1", "conv2", "conv3", "conv4", "conv5")


def get_config() -> ml_collections.ConfigDict:
    """Run 146-2009 (layers-146-2009.cfg and its notes): run 145's convolutions at a tenth of the rate.

    The notes' "2.1600" and "6.6491" are epochs 2 and 6, counted from 1, at files 1,600 and 6,491 of about
    8,800 (layer-params-135-2009.cfg) with 1,024 images each. Deviations: by the dates it began two
    days into run 145, about epoch 26 to 30; here it starts from the finished run, and fc6 and fc7 do, too;
    otherwise as in configs/original.py.
    """
    config = original.get_config()
    config.data.source = "folder:fall2009"
    config.data.num_classes = 10184

    config.model.conv6 = True

    config.augment.colour_until_epochs = None

    config.optimizer.drop_epochs = (1.18,)
    config.optimizer.layer_rates = (
        *((f"{name}.kernel", 0.0, 0.001) for name in CONVOLUTIONS),
        ("conv6.bias", 0.0, 0.002),
    )

    config.init.path = "runs/run145"

    config.run.total_epochs = 5.74
    config.run.eval_every_epochs = 1.0
    config.run.eval_views = 1
    return config
