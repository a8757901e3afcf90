"""Table 1: the CNN on the test images of ILSVRC-2010, in ten views, by the code that made the table."""

# Needs the official archives of ILSVRC-2010 (tars:ILSVRC2010). We have not run it.
CONFIG = "configs/original.py"
SEEDS = (0, 1, 2)
ROWS = {}
PUBLISHED = {"CNN": ("parent", 37.5, 17.0)}
