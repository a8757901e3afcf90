"""Trains a small net with all images in the device's memory and many steps a program.

    python -m experiments.in_memory --config=configs/conv_local_11pct.py --config.data.source=prepared:cifar10

Flags, workdir and numbers are those of main.py, which can resume a run of this and the other way round
(tests/experiments/test_in_memory.py compares them). What differs: images are decoded once, before the first
step, and on an accelerator `run.log_every_steps` steps are one program. For nets whose step takes less time
than a host needs for its batch. One process; `run.save_every_minutes` and `run.profile_steps` have no effect.
"""

import sys
from typing import Any

from alexnet_jax import launch
from alexnet_jax.common import command_line


def main() -> int:
    def train(*run: Any) -> str:
        from experiments import in_memory_loop  # late, as it imports JAX, which takes seconds

        return in_memory_loop.train(*run)

    if {"--help", "-h"} & set(sys.argv):
        print(f"{__doc__}\nThe flags are those of main.py:\n")
    return launch.main(train=train)


if __name__ == "__main__":
    command_line.command(main)
