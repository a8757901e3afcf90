"""The command `predict`: names what is in images."""

import argparse
import functools
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from alexnet_jax import evaluate
from alexnet_jax.common import host, paths, progress
from alexnet_jax.common.errors import UserError
from alexnet_jax.data import inference
from alexnet_jax.data.folders import IMAGE_START
from alexnet_jax.tools import confusion
from alexnet_jax.weights import pretrained
from alexnet_jax.weights.pretrained import Pretrained


def predictor(loaded: Pretrained, topk: int, views: int) -> Callable[[np.ndarray], tuple[Any, Any]]:
    """Compiles `images -> (probabilities, labels)`: uint8 `[B, S, S, 3]` to `[B, topk]` each, best first.

    Args:
      views: 1 for the central patch; 10 for the mean softmax output of the ten views (section 4.1).

    Raises:
      UserError: the weights have no classifier.
    """
    loaded.require_classifier()
    model = loaded.model

    def predict(variables: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        apply = functools.partial(model.apply, variables)
        logs = evaluate.log_probabilities(apply, images, loaded.preprocess, views)
        return jax.lax.top_k(jnp.exp(logs), min(topk, model.num_classes))

    run = jax.jit(predict, compiler_options=host.eigen_options())
    return lambda images: run(loaded.variables, images)


def predictions(
    loaded: Pretrained, files: Iterable[str | bytes], *, topk: int = 5, views: int = 1
) -> Iterator[dict[str, Any]]:
    """Predicts each image, in order; paths from a pipe are answered as they arrive.

    Args:
      files: paths, or bytes of image files.

    Returns:
      Dictionaries `{"file", "predictions": [{"label", "class", "probability"}, ...]}`, with "error" instead
      of "predictions" for an unreadable image.
    """
    classes = class_names(loaded)
    function, decode = predictor(loaded, topk, views), loaded.preprocess.decode
    for file, image, result in inference.run_batches(function, files, decode):
        name = "standard input" if isinstance(file, bytes) else file
        if image is None:
            yield {"file": name, "error": "unreadable, or not a complete image (save HEIC as JPEG)"}
            continue
        best = [
            {"label": label, "class": classes[label], "probability": probability}
            for probability, label in zip(*(values.tolist() for values in result), strict=True)
        ]
        yield {"file": name, "predictions": best}


def class_names(loaded: Pretrained) -> tuple[str, ...]:
    """The class names stored with the weights, else `class 0`, `class 1`, ..."""
    return loaded.classes or tuple(f"class {label}" for label in range(loaded.model.num_classes))


def standard_input(stream: IO[bytes]) -> Iterator[str | bytes]:
    """The image in `stream`, or the paths in it, one per line."""
    if IMAGE_START.match(stream.peek(16)):  # type: ignore[attr-defined]
        yield stream.read()
        return
    for line in stream:
        if name := line.decode(errors="surrogateescape").rstrip("\r\n"):
            yield name


def as_text(answer: dict[str, Any]) -> str:
    """The file name, then one line per class."""
    lines = [f"{100 * p['probability']:7.2f} %  {p['class']}" for p in answer["predictions"]]
    return "\n".join([answer["file"], *lines])


def main(args: argparse.Namespace) -> int:
    if args.confusion:
        confusion.check_table(args.confusion)
    from_pipe = args.images in ([], ["-"])
    found = [] if from_pipe else inference.find_with_classes(args.images)
    files = standard_input(sys.stdin.buffer) if from_pipe else [file for file, _ in found]
    loaded = pretrained.read(args.weights, partial=True, variant=args.variant, mean=args.mean)
    classes = class_names(loaded)
    judged = found and (args.confusion or any(paths.expanded(image).is_dir() for image in args.images))
    folders = [folder for _, folder in found]
    truth = confusion.folder_labels(folders, classes, loaded.class_ids) if judged else None
    if args.confusion and truth is None:
        names = ", ".join(classes[:3])
        raise UserError(
            f"--confusion={args.confusion}: needs images in folders named by class ({names}, ...)"
        )
    matrix, labels = confusion.Confusion(classes, args.topk), iter(truth or ())
    total = None if from_pipe else len(found)
    answers = predictions(loaded, files, topk=args.topk, views=args.views)
    readable = set()
    # On a terminal the answers themselves show the progress.
    for answer in progress.bar(total, "image", iterable=answers, disable=sys.stdout.isatty()):
        readable.add("error" not in answer)
        if (label := next(labels, None)) is not None and "error" not in answer:
            matrix.add(label, [best["label"] for best in answer["predictions"]])
        if args.json:
            print(json.dumps(answer), flush=True)
        elif "error" in answer:
            tqdm.tqdm.write(f"{answer['file']}: {answer['error']}", file=sys.stderr)
        else:
            print(as_text(answer), flush=True)
    if readable == {False}:
        raise UserError("none of the images can be read")
    if truth is not None:
        print(json.dumps(matrix.summary()) if args.json else f"\n{matrix.as_text()}")
    if args.confusion:
        print(f"{args.confusion}, {matrix.write(args.confusion)}", file=sys.stderr)
    return 0
