"""Run 141-2009: run 141's net goes on with the 10,184 classes of Fall 2009. No top-1 error was published.

    python main.py --config=configs/run141_fall2009.py --config.data.source=folder:PATH \
        --config.init.path=RUN --workdir=DIR

PATH has `train/<WordNet id>/` with the images of Fall 2009 and a `val/` with some of them; RUN is a workdir
of configs/run141.py. Not run at full scale by us.
"""

import ml_collections

from configs import run141


def get_config() -> ml_collections.ConfigDict:
    """All layers but fc8 from run 141, at a tenth of the first rate (layer-params-141-2009.cfg:216-222).

    The notes' "4.1189" and "5.1596" are epochs 4 and 5, counted from 1, at files 1,189 and 1,596 of 1,024
    images each. Not recorded: the biases' rate, and the number of files, for which the 8,800 of run 135-2009
    are taken; by the runs' dates that makes 226 images/s here and 251 in run 141. Otherwise as in
    configs/run141.py.
    """
    config = run141.get_config()
    config.data.source = "folder:fall2009"
    config.data.num_classes = 10184

    config.optimizer.learning_rate = 0.001
    config.optimizer.bias_rate_factor = 20.0  # 0.02, as before
    config.optimizer.drop_epochs = (3.14,)

    config.init.path = "runs/run141"

    config.run.total_epochs = 4.18
    config.run.eval_every_epochs = 1.0
    config.run.eval_views = 1
    return config
