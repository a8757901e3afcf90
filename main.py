"""Trains and tests AlexNet: python main.py --config=configs/default.py [--workdir=DIR] [--mode=train].

`--config.KEY=VALUE` overrides a key, `--mode=eval` tests WORKDIR's last checkpoint, `--mode=summary` counts
the net, and `--help` describes all flags. `python -m alexnet_jax train` is the same.
"""

import os
import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Ctrl-C while the libraries load: some of them swallow a KeyboardInterrupt. `command` restores it.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

from alexnet_jax.common import command_line


def main() -> int:
    with command_line.quiet_interrupts():
        from alexnet_jax import launch  # here, so that a library that is not installed is one line
    return launch.main()


if __name__ == "__main__":
    command_line.command(main)
