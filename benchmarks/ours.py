"""One contestant of `benchmarks.speed`, in a process of its own: this project's net.

    python -m benchmarks.ours train --batch=128

Prints a JSON object: the seconds of each timed step, peak memory, operations of an image. The steps are those
of a run (`steps.make_train_step`, `steps.forward_on_mesh`, `evaluate.make_eval_step`). The only preprocessing
is to subtract a mean, as in the PyTorch contestants.
"""

import argparse
import concurrent.futures
import functools
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks import tables

WORKS = ("train", "forward", "ten views", "limit", "about")

# Published peaks for dense products by `device_kind`, in 1e12 operations a second: float32 as XLA computes it
# by default (TPU: one bfloat16 pass; NVIDIA: TF32), bfloat16, and float32 proper (`highest`; on a TPU six
# bfloat16 passes, for which nothing is published).
PEAKS = {
    "NVIDIA A100-SXM4-40GB": (156, 312, 19.5),  # nvidia.com, A100 datasheet
    "NVIDIA A100-SXM4-80GB": (156, 312, 19.5),
    "NVIDIA H100 80GB HBM3": (494.7, 989.4, 67),  # nvidia.com, H100 datasheet, SXM, without sparsity
    "NVIDIA H200": (494.7, 989.4, 67),  # nvidia.com, H200 datasheet, SXM, without sparsity
    "NVIDIA L4": (60, 121, 30.3),  # nvidia.com, L4 datasheet, without sparsity
    "Tesla V100-SXM2-16GB": (15.7, None, 15.7),  # nvidia.com, V100 datasheet; no bfloat16
    "Tesla T4": (8.1, None, 8.1),  # nvidia.com, T4 datasheet; no bfloat16
    "TPU v4": (275, 275, None),  # cloud.google.com/tpu/docs/v4
    "TPU v5 lite": (197, 197, None),  # cloud.google.com/tpu/docs/v5e
    "TPU v5": (459, 459, None),  # cloud.google.com/tpu/docs/v5p
    "TPU v6 lite": (918, 918, None),  # cloud.google.com/tpu/docs/v6e
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("work", choices=WORKS)
    parser.add_argument("--variant", default="paper")
    parser.add_argument("--net", default="{}", help="arguments of create_model, a JSON object")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--micro_batches", type=int, default=1)
    parser.add_argument("--warm", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--devices", type=int, help="number of devices; all by default")
    given = parser.parse_args()

    from alexnet_jax.common import host

    host.keep_memory()
    host.keep_compiled()
    work = {"limit": limit, "about": lambda _: about()}.get(given.work, net)
    print(json.dumps({**work(given), "peak_bytes": tables.peak_bytes()}))


def timed(run: Callable[[], Any], warm: int, steps: int, calls: int = 1) -> tuple[float, list[float]]:
    """Seconds of a call, until the computation has ended: of the first time, and of each that counts.

    Args:
      calls: made back to back each time, which hides the start of the next one, as the loop does on
        accelerators.
    """
    import jax

    from alexnet_jax.run import pace

    # On a CPU the loop waits before each step, too.
    pause = pace.FREED_SECONDS if jax.default_backend() == "cpu" else 0.0
    first, seconds = 0.0, []
    for number in range(max(warm, 1) + steps):
        began = time.perf_counter()
        time.sleep(pause)
        for _ in range(calls - 1):
            run()
        jax.block_until_ready(run())
        passed = (time.perf_counter() - began) / calls
        first = passed if number == 0 else first
        if number >= max(warm, 1):
            seconds.append(passed)
    return first, seconds


def net(given: argparse.Namespace) -> dict[str, Any]:
    """Times the training step, the forward pass or the ten-view test of a net."""
    import jax

    from alexnet_jax import columns
    from alexnet_jax.run import summary
    from alexnet_jax.variants import create_model

    mesh = columns.make_mesh(devices=jax.devices()[: given.devices])
    switches = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(given.net).items()}
    model = create_model(given.variant, **switches)
    run = repeated(given.work, *make_program(given, model, mesh))
    first, seconds = timed(run, given.warm, given.steps)
    return {
        "seconds": seconds,
        "first_seconds": first,
        "images": given.batch * (10 if given.work == "ten views" else 1),
        "operations": summary.operations(model, given.image_size, train=given.work == "train"),
    }


def repeated(work: str, program: Callable[..., Any], arguments: tuple[Any, ...]) -> Callable[[], Any]:
    """A function that does one step of the work; a training step goes on from the state of the last."""
    if work != "train":
        return functools.partial(program, *arguments)
    state, batch = arguments
    states = [state]  # the only reference to the state, which each step donates

    def run() -> Any:
        states[0], metrics = program(states[0], batch)
        return states[0], metrics

    return run


def make_program(given: argparse.Namespace, model: Any, mesh: Any) -> tuple[Any, tuple[Any, ...]]:
    """The jitted program of a step, and its arguments: the batch is on the devices."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from alexnet_jax import evaluate, steps
    from alexnet_jax import optimizer as optimizers
    from alexnet_jax.common import host
    from alexnet_jax.data.preprocess import Preprocess

    rates = optimizers.Rates(optimizers.constant(0.01), optimizers.constant(0.02))
    optimizer = optimizers.sgd_2012(rates)
    state = steps.init_state(model, optimizer, given.image_size, 0, mesh)
    side = given.image_size * 256 // 224 if given.work == "ten views" else given.image_size
    batch = jax.device_put(make_batch(given.batch, side, model.num_classes), steps.batch_sharding(mesh))

    def view(images: jax.Array, key: jax.Array, example_ids: jax.Array, step: Any = None) -> jax.Array:
        return images.astype(jnp.float32) - 120.0

    if given.work == "train":
        train_step = steps.make_train_step(
            model, optimizer, mesh, view, seed=0, log_every=100, micro_batches=given.micro_batches
        )
        return train_step, (state, batch)
    if given.work == "forward":
        forward = jax.jit(
            steps.forward_on_mesh(model, mesh, view, train=False), compiler_options=host.eigen_options()
        )
        params, key, ids = state.params, jax.random.key(0), jnp.arange(given.batch)
        return forward, (params, batch["image"], key, ids)
    preprocess = Preprocess(side, given.image_size, mean=np.full(3, 120, np.float32))
    return evaluate.make_eval_step(model, mesh, preprocess, views=10), (state.params, batch)


def make_batch(size: int, side: int, num_classes: int) -> dict[str, Any]:
    """A batch of random images `[B, side, side, 3]` uint8 with labels and weights, on the host."""
    import numpy as np

    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (size, side, side, 3), np.uint8),
        "label": rng.integers(0, num_classes, size, np.int32),
        "weight": np.ones(size, np.float32),
    }


def limit(given: argparse.Namespace) -> dict[str, Any]:
    """The machine's rates of matrix products (XLA and NumPy) and of copying memory."""
    import jax
    import numpy as np

    rates = {}
    multiply = jax.jit(lambda a, b: a @ b)
    for size in tables.PRODUCT_SIZES:
        a, b = (np.random.default_rng(i).random((size, size), np.float32) for i in range(2))
        on_device = jax.device_put((a, b))
        for name, run in (
            ("XLA", functools.partial(multiply, *on_device)),
            ("NumPy", functools.partial(np.matmul, a, b)),
        ):
            _, seconds = timed(run, given.warm, given.steps)
            rates[f"{name} {size}"] = 2 * size**3 / statistics.median(seconds)
    workers = tables.cores()
    share = tables.COPY_BYTES // workers
    parts = [(np.ones(share, np.uint8), np.ones(share, np.uint8)) for _ in range(workers)]
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        _, seconds = timed(
            lambda: list(pool.map(lambda part: np.copyto(*part), parts)), given.warm, given.steps
        )
    rate = tables.COPY_BYTES / statistics.median(seconds)
    return {"product_rates": rates, "copy_bytes_per_second": rate}


def about() -> dict[str, Any]:
    """The device and the versions."""
    import importlib.metadata
    import platform

    import jax

    device = jax.devices()[0]
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "numpy")}
    return {
        "platform": device.platform,
        "device": device.device_kind,
        "devices": jax.device_count(),
        "runtime": device.client.platform_version.splitlines()[0],
        "peaks": PEAKS.get(device.device_kind),
        "versions": {"python": platform.python_version(), **versions},
    }


if __name__ == "__main__":
    main()
