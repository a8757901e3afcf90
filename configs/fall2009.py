"""A sixth convolution and Fall 2009 (section 6): 67.4 % top-1 and 40.9 % top-5 test error, published.

    python main.py --config=configs/fall2009.py --config.data.source=folder:PATH --workdir=DIR

PATH has `train/<WordNet id>/` with half of the 8.9 million images in 10,184 classes and `val/` with the other
half. The figures are the paper's; not run at full scale by us.
"""

import ml_collections

from configs import original

SLOW = ("conv1", "conv2")


def get_config() -> ml_collections.ConfigDict:
    """Run 145's net with conv6 and the schedule of run 141-2009-half, the only released one on half.

    Its notes, "6.2600" and the like, are in epochs, counted from 1, and files of 1,024 images, of which half
    the images fill about 4,400. Deviations: which net gave the paper's figures is not recorded, and run
    141-2009-half has configs/run141.py's net, was later restarted at 0.001 to epoch 56, and ends with biases
    at 0.002; otherwise as in configs/original.py.
    """
    config = original.get_config()
    config.data.source = "folder:fall2009"
    config.data.num_classes = 10184

    config.model.conv6 = True

    config.augment.colour_until_epochs = 17.54

    config.optimizer.drop_epochs = (5.59, 12.76, 24.84)
    config.optimizer.layer_rates = (
        *((f"{name}.kernel", 17.54, 0.00001) for name in SLOW),
        *((name, 20.44, 0.0) for name in SLOW),
    )

    config.run.total_epochs = 27.74
    config.run.eval_every_epochs = 1.0
    config.run.eval_views = 1  # ten views of 4.4 million images only in the end, with --mode=eval
    return config
