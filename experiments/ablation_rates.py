"""The learning rates of the ablations: chosen on 5,000 training images of CIFAR-10 that are held out."""

# From a folder of the training images, with a folder for each class:
#     python -m alexnet_jax split cifar10/train --val=0.1 --out=held-out
#     python -m alexnet_jax prepare --source=folder:held-out --out=runs/cifar10-held-out --resize_size=64
from experiments import ablations

CONFIG = ablations.CONFIG
PARENT = {
    **ablations.PARENT,
    "data.source": "prepared:runs/cifar10-held-out",
    "run.total_epochs": 3.5,  # of the ablations' 6
    "optimizer.drop_epochs": (2.5, 3.25),
}
SEEDS = (0,)
ROWS = {f"rate {rate}": {"optimizer.learning_rate": rate} for rate in (0.005, 0.02)}
# Rows of another scale than the parent; each takes its best rate in ablations.py.
for row in ("tanh", "no dropout", "init paper"):
    for rate in (0.005, 0.01, 0.02, *((0.04,) if row == "tanh" else ())):  # tanh's best was at the edge
        ROWS[f"{row}, rate {rate}"] = {**ablations.ROWS[row], "optimizer.learning_rate": rate}
