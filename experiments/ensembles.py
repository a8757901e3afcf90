"""What averaging 3 and 5 nets gains over one, centre and ten views: Fashion-MNIST at 72 pixels."""

CONFIG = "configs/default.py"
PARENT = {
    "data.stored_size": 82,
    "data.image_size": 72,
    "data.batch_size": 32,
    "model.widths": (24, 64, 96, 96, 64, 64),  # a quarter of the paper's
    "model.fc_widths": (256, 256),
    "run.total_epochs": 3.0,
    "optimizer.drop_epochs": (2.5,),
    "run.save_every_epochs": 3.0,
    "run.keep_checkpoints": 1,
    "run.log_every_steps": 125,
}
SEEDS = (0, 1, 2, 3, 4)
ROWS = {}
# The paper, ILSVRC-2012, ten views: 40.7 % top-1 error with one net, 38.1 % with five (Table 2).
ENSEMBLES = {
    "1 net": {"parent": (0,)},
    "3 nets": {"parent": (0, 1, 2)},
    "5 nets": {"parent": (0, 1, 2, 3, 4)},
}
