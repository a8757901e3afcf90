"""Prints our frames between `launch.main` and the convolutions of a training step's forward pass.

    python -m tests.frames FLAGS, those of main.py

A line of JSON: the longest stack, outermost first, as `file:function`. Tracing's own frames, of JAX and Flax,
do not count.
"""

import json
import pathlib
import sys
import traceback
from typing import Any

import jax

ROOT = pathlib.Path(__file__).parents[1]


def own_frames() -> list[str]:
    """`file:function` for each frame of the package or of main.py."""
    frames = traceback.extract_stack()[:-2]
    package, entry = f"{ROOT / 'alexnet_jax'}/", str(ROOT / "main.py")
    return [
        f"{pathlib.Path(frame.filename).relative_to(ROOT)}:{frame.name}"
        for frame in frames
        if frame.filename.startswith(package) or frame.filename == entry
    ]


def main() -> None:
    bind, found = jax.lax.conv_general_dilated_p.bind, []

    def spy(*args: Any, **kwargs: Any) -> Any:
        frames = own_frames()
        if "alexnet_jax/steps.py:train_step" in frames and not any("gradient" in name for name in frames):
            found.append(frames)
        return bind(*args, **kwargs)

    jax.lax.conv_general_dilated_p.bind = spy
    from alexnet_jax import launch

    code = launch.main(sys.argv[1:])
    print(json.dumps({"code": code, "frames": max(found, key=len)}))


if __name__ == "__main__":
    main()
