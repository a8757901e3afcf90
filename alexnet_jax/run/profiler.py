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
        self._left, self._skip, self._is_running = steps, SKIPPED, False

    def after_step(self, result: Any) -> None:
        """Starts or ends the profile when due; waits for `result`, an output of the step."""
        if self._left == 0:
            return
        if self._skip > 0:
            self._skip -= 1
            if self._skip == 0:
                jax.block_until_ready(result)
                jax.profiler.start_trace(self._directory, create_perfetto_trace=True)
                self._is_running = True
            return
        self._left -= 1
        if self._left == 0:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Ends a running profile and prints its path."""
        if not self._is_running:
            return
        self._is_running, self._left = False, 0
        jax.profiler.stop_trace()
        self._say(
            f"profile    {self._directory}: TensorBoard shows it (pip install tensorboard-plugin-profile), "
            "and ui.perfetto.dev opens its perfetto_trace.json.gz"
        )
