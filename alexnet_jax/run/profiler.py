"""A profile of some training steps, on request, for TensorBoard or Perfetto."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax

DIRECTORY = "profile"  # in a workdir
SKIPPED = 3  # steps before it begins: the compiler's, and those in which memory finds its size


class Profile:
    """Records `steps` steps of a run, from a few after its start on; none for 0.

    `after_step` is to be called after each step is dispatched, `close` at the end.
    """

    def __init__(self, workdir: pathlib.Path, steps: int, say: Callable[[str], None]):
        self._directory, self._say = workdir / DIRECTORY, say
        self._left, self._skip, self._on = steps, SKIPPED, False

    def after_step(self, result: Any) -> None:
        """Begins or ends the recording; `result` is something the step computes, to be waited for."""
        if self._left == 0:
            return
        if self._skip > 0:
            self._skip -= 1
            if self._skip == 0:
                jax.block_until_ready(result)
                jax.profiler.start_trace(self._directory, create_perfetto_trace=True)
                self._on = True
            return
        self._left -= 1
        if self._left == 0:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Ends the recording, if it is under way, and says where it is."""
        if not self._on:
            return
        self._on, self._left = False, 0
        jax.profiler.stop_trace()
        self._say(
            f"profile    {self._directory}: TensorBoard shows it (pip install tensorboard-plugin-profile), "
            "and ui.perfetto.dev opens its perfetto_trace.json.gz"
        )
