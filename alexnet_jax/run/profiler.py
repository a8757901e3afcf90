"""Profiles some training steps for TensorBoard or Perfetto."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax

DIRECTORY = "profile"  # in a workdir
SKIPPED = 3  # steps before the profile, which compile and allocate


class Profile:
    """Profiles `steps` steps of a run (0 for none), soon after its start.

    Call `after_step` after dispatching each step and `close` at the end.
    """

    def __init__(self, workdir: pathlib.Path, steps: int, say: Callable[[str], None]):
        self._directory, self._say = workdir / DIRECTORY, say
        self._steps, self._done, self._is_running = steps, 0, False

    def after_step(self, result: Any) -> None:
        """Starts or ends the profile when due, which waits for `result`, an output of the step."""
        self._done += 1
        if self._steps and self._done == SKIPPED:
            jax.block_until_ready(result)
            jax.profiler.start_trace(self._directory, create_perfetto_trace=True)
            self._is_running = True
        elif self._is_running and self._done == SKIPPED + self._steps:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Ends a running profile and prints its path."""
        if self._is_running:
            self._is_running = False
            jax.profiler.stop_trace()
            self._say(
                f"profile    {self._directory}: TensorBoard shows it (pip install "
                "tensorboard-plugin-profile), and ui.perfetto.dev opens its perfetto_trace.json.gz"
            )
