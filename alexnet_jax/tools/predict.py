"""Names what is in images.

    python -m alexnet_jax.tools.predict IMAGE... [--weights=WEIGHTS] [--topk=5] [--views=10] [--json]

IMAGE is a file or a folder of them. Without one, or with -, standard input is read: either one image, or a
path a line, each answered as it comes.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from alexnet_jax import evaluate
from alexnet_jax.common import command_line, host, progress
from alexnet_jax.common.errors import UserError
from alexnet_jax.data import image_files
from alexnet_jax.weights import pretrained
from alexnet_jax.weights.pretrained import Pretrained

GROUP = 32  # images at a time


def predictor(loaded: Pretrained, topk: int, views: int) -> Callable[[np.ndarray], tuple[Any, Any]]:
    """Compiles `images -> (probabilities, labels)`: uint8 `[B, S, S, 3]` to `[B, topk]` each, best first.

    Args:
      views: 1 for the central patch; 10 for the ten views of section 4.1, their softmax outputs averaged.

    Raises:
      UserError: the weights have no classifier.
    """
    if loaded.missing:
        raise UserError(
            f"{loaded.path}: no classifier, for {', '.join(loaded.missing)} are missing, so it cannot name "
            f"classes; train one (configs/finetune.py), or use python -m alexnet_jax.tools.features"
        )
    model, preprocess = loaded.model, loaded.preprocess

    def predict(variables: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        def logits_of(x: jax.Array) -> Any:
            return model.apply(variables, x)

        logs = evaluate.log_probabilities(logits_of, images, preprocess, views)
        return jax.lax.top_k(jnp.exp(logs), min(topk, model.num_classes))

    run = jax.jit(predict, compiler_options=host.forward_options())
    return lambda images: run(loaded.variables, images)


def predictions(
    loaded: Pretrained, names: Iterable[str | bytes], *, topk: int = 5, views: int = 1
) -> Iterator[dict[str, Any]]:
    """What is in each image, in order, as it is found.

    Args:
      names: paths, or the bytes of an image.

    Returns:
      Dictionaries `{"file", "predictions": [{"label", "class", "probability"}, ...]}`, or with "error"
      instead of "predictions" where an image cannot be read.
    """
    predict = predictor(loaded, topk, views)
    classes = loaded.classes or tuple(f"class {label}" for label in range(loaded.model.num_classes))
    # The results of a group are fetched when the next one is under way.
    pending: tuple[list[image_files.Item], Any] | None = None
    for items in image_files.decoded(names, loaded.preprocess, GROUP):
        good = [image for _, image in items if image is not None]
        results = predict(image_files.padded(good, GROUP)) if good else None
        if pending is not None:
            yield from _answers(*pending, classes)
        pending = items, results
        if len(items) < GROUP:  # nothing more has come yet: who waits gets an answer now
            yield from _answers(*pending, classes)
            pending = None
    if pending is not None:
        yield from _answers(*pending, classes)


def _answers(
    items: list[image_files.Item], results: Any, classes: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
    rows = iter(()) if results is None else zip(*(np.asarray(r).tolist() for r in results), strict=True)
    for name, image in items:
        if image is None:
            yield {"file": name, "error": "not a whole image in a known format, or not to be read"}
            continue
        found = [
            {"label": label, "class": classes[label], "probability": probability}
            for probability, label in zip(*next(rows), strict=True)
        ]
        yield {"file": name, "predictions": found}


def standard_input(stream: IO[bytes]) -> Iterator[str | bytes]:
    """The image that `stream` holds, or the paths in it, one a line."""
    head = stream.peek(16)[:16]  # type: ignore[attr-defined]
    if head.startswith((b"\xff\xd8", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"P6", b"P5")):
        yield stream.read()
        return
    for line in stream:
        if name := line.decode(errors="surrogateescape").rstrip("\r\n"):
            yield name


def as_text(answer: dict[str, Any]) -> str:
    """An answer for reading: the file, and below it a class a line."""
    lines = [f"{100 * p['probability']:7.2f} %  {p['class']}" for p in answer["predictions"]]
    return "\n".join([answer["file"], *lines])


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_line.Parser("alexnet_jax.tools.predict", __doc__)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="files and folders; - for standard input")
    parser.add_argument("--weights", default="torchvision", help="a file of weights, a workdir, or a name")
    parser.add_argument("--topk", type=int, default=5, help="how many classes an image")
    parser.add_argument("--views", type=int, choices=(1, 10), default=1, help="1: centre; 10: the paper's")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    args = parser.parse_args(argv)
    if args.topk < 1:
        raise UserError(f"--topk={args.topk}: must be 1 or more")

    from_pipe = args.images in ([], ["-"])
    names = standard_input(sys.stdin.buffer) if from_pipe else image_files.find(args.images)
    loaded = pretrained.read(args.weights, partial=True)
    good = bad = 0
    total = None if from_pipe else len(names)  # type: ignore[arg-type]
    # On a terminal the answers themselves are the progress.
    with progress.bar(total, "image", disable=sys.stdout.isatty()) as bar:
        for answer in predictions(loaded, names, topk=args.topk, views=args.views):
            bar.update()
            good, bad = good + ("error" not in answer), bad + ("error" in answer)
            if args.json:
                print(json.dumps(answer), flush=True)
            elif "error" in answer:
                tqdm.tqdm.write(f"{answer['file']}: {answer['error']}", file=sys.stderr)
            else:
                print(as_text(answer), flush=True)
    if bad and not good:
        raise UserError("none of the images can be read")
    return 0


if __name__ == "__main__":
    command_line.command(main)
