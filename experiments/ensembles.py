"""What averaging 3 and 5 nets gains over one, centre and ten views: the default config."""

import itertools as _itertools

CONFIG = "configs/default.py"
SEEDS = (0, 1, 2, 3, 4)
ROWS = {}
# The paper, ILSVRC-2012, ten views: 40.7 % top-1 error with one net, 38.1 % with five (Table 2).
ENSEMBLES = {
    **{f"3 nets {seeds}": {"parent": seeds} for seeds in _itertools.combinations(SEEDS, 3)},
    "5 nets": {"parent": SEEDS},
}
