"""Table 2: 1 CNN, 5 CNNs, 1 CNN* and 7 CNNs* on ILSVRC-2012, in ten views."""

# Reads the copy of TFDS and Fall 2011 as folder:fall2011; reproduce --set data.source=... names other images
# of 2012, and 'CNN* on Fall 2011: data.source=...' of that. We have not run it at full size.
CONFIG = "configs/imagenet2012.py"
PARENT = {}
SEEDS = (0, 1, 2, 3, 4)
ROWS = {
    "CNN* on Fall 2011": {
        "config": "configs/cnn_star_fall2011.py",
        "data.source": "folder:fall2011",
        "augment.mean": "colour",  # a folder has no mean image
    },
    "CNN*": {"config": "configs/cnn_star.py"},
}
ONLY = {"CNN* on Fall 2011": (0, 1), "CNN*": (0, 1)}
START = {"CNN*": "CNN* on Fall 2011"}
PAPER = {"CNN*": (-1.7, -1.6)}
ENSEMBLES = {
    "5 CNNs": {"parent": (0, 1, 2, 3, 4)},
    "7 CNNs*": {"parent": (0, 1, 2, 3, 4), "CNN*": (0, 1)},
}
PUBLISHED = {  # on the validation images
    "1 CNN": ("parent", 40.7, 18.2),
    "5 CNNs": ("5 CNNs", 38.1, 16.4),
    "1 CNN*": ("CNN*", 39.0, 16.6),
    "7 CNNs*": ("7 CNNs*", 36.7, 15.4),
}
