"""What keeps a net from overfitting (sections 4.1, 4.2, 5): a tenth of CIFAR-10, ten times as many epochs."""

# On all 50,000 images the narrow net of ablations.py does not overfit: its error in training is that of the
# test. Here it sees 5,000 of them, 500 a class, and the same 10,000 test images:
#     python -m alexnet_jax split cifar10/train --val=0.9 --out=tenth
#     rm -r tenth/val; cp -r cifar10/test tenth/val
#     python -m alexnet_jax prepare --source=folder:tenth --out=runs/cifar10-tenth --resize_size=64
from experiments import ablations

CONFIG = ablations.CONFIG
PARENT = {
    **ablations.PARENT,
    "data.source": "prepared:runs/cifar10-tenth",
    "run.total_epochs": 60.0,
    "optimizer.drop_epochs": (45.0, 55.0),
    "run.eval_every_epochs": 10.0,
    "run.save_every_epochs": 60.0,
}
SEEDS = (0, 1, 2)
ROWS = {
    "no dropout": ablations.ROWS["no dropout"],
    "no crops, no mirrors": {"augment.crop": False, "augment.mirror": False},
    "no crops, no mirrors, no dropout": {
        **ablations.ROWS["no dropout"],
        "augment.crop": False,
        "augment.mirror": False,
    },
    "no crops": {"augment.crop": False},
    "no mirrors": {"augment.mirror": False},
    "no colour noise": {"augment.colour": "none"},
    "no weight decay": {"optimizer.weight_decay": 0.0},
    "nothing of these": {
        **ablations.ROWS["no dropout"],
        "augment.crop": False,
        "augment.mirror": False,
        "augment.colour": "none",
        "optimizer.weight_decay": 0.0,
    },
}
# Dropout where the net overfits.
AGAINST = {"no crops, no mirrors, no dropout": "no crops, no mirrors"}
PAPER = {"no colour noise": (1.0, None)}  # section 4.1: "over 1 %"
TRAINING_ERROR = tuple(ROWS)
