"""The command `ensemble`: tests one net or an ensemble (Table 2); writes ILSVRC submissions."""

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Sequence

import numpy as np

from alexnet_jax import config as configs
from alexnet_jax.common import progress
from alexnet_jax.common.errors import UserError
from alexnet_jax.common.files import write_text
from alexnet_jax.data import inference, sources, tars
from alexnet_jax.data.folders import FileSource
from alexnet_jax.data.sources import Source
from alexnet_jax.run import logs
from alexnet_jax.tools import predictions, weight_search
from alexnet_jax.tools.predictions import UNKNOWN, Predictions
from alexnet_jax.weights import pretrained

TOP = 5  # labels per line of a submission


def unlabelled(paths: Sequence[str], class_ids: tuple[str, ...]) -> Source:
    """A source of image files without labels, sorted by file name."""
    names = sorted(inference.find(paths), key=lambda name: (pathlib.PurePath(name).name, name))
    return FileSource(
        root="",
        paths=names,
        labels=np.full(len(names), UNKNOWN, np.int32),
        class_ids=class_ids,
        class_names=class_ids,
        description=f"{', '.join(map(str, paths))}: {len(names):,} images without labels",
    )


def submission(predicted: Predictions, numbers: dict[str, int]) -> str:
    """One line per image, in order: the numbers of the five most probable classes, best first.

    Args:
      numbers: the test server's class numbers, by WordNet id (`tars.numbers`).

    Raises:
      UserError: a class has no number, or there are fewer than five.
    """
    if absent := [class_id for class_id in predicted.classes if class_id not in numbers]:
        raise UserError(f"--devkit: has no class {absent[0]}, which these predictions have")
    if len(predicted.classes) < TOP:
        raise UserError(f"--submission: needs {TOP} classes or more, not {len(predicted.classes)}")
    best = np.argsort(-predicted.probabilities, axis=1, kind="stable")[:, :TOP]
    by_label = np.array([numbers[class_id] for class_id in predicted.classes])
    return "".join(" ".join(map(str, row)) + "\n" for row in by_label[best])


def _source_of(nets: Sequence[str], given: str | None) -> Source:
    """The images of `--source`, else the test images of the first workdir."""
    if given is not None:
        return sources.open_source(given, "test")
    workdir = next((path for path in map(pathlib.Path, nets) if path.is_dir()), None)
    if workdir is None:
        raise UserError(
            "--source: missing; name the images as data.source in a config does, or give --images"
        )
    return sources.open_configured(configs.of_workdir(workdir).data, "test")


def main(args: argparse.Namespace) -> int:
    if args.source and args.images:
        raise UserError("--source and --images: give one of them")
    if args.submission and not args.devkit:
        raise UserError("--submission: needs --devkit=PATH, which holds the server's numbers of the classes")
    if args.search_weights and (args.member_weights or args.images or len(args.members) < 2):
        raise UserError("--search_weights: needs two members or more, labels, and no --member_weights")
    numbers = tars.numbers(args.devkit) if args.devkit else {}
    weights = predictions.member_weights(args.member_weights, len(args.members))

    nets = [name for name in args.members if not predictions.holds_predictions(pathlib.Path(name))]
    source = _source_of(nets, args.source) if nets and not args.images else None
    members = []
    for name in args.members:
        if name not in nets:
            members.append(predictions.load(pathlib.Path(name)))
            continue
        known = {} if pathlib.Path(name).is_dir() else {"variant": args.variant, "mean": args.mean}
        loaded = pretrained.read(name, partial=True, **known)
        class_ids = loaded.class_ids or tuple(map(str, range(loaded.model.num_classes)))
        source = source or unlabelled(args.images, class_ids)
        members.append(predictions.predict(loaded, source, views=args.views))
    weights = weight_search.search(members) if args.search_weights else weights
    mean = predictions.average(members, weights)
    errors = predictions.errors(mean)
    if args.out:
        predictions.save(args.out, mean)
    if args.submission:
        write_text(args.submission, submission(mean, numbers))
    values = {"members": len(members), "images": len(mean.ids)}
    values |= {"views": args.views} if nets else {}
    values |= dataclasses.asdict(errors) if errors else {}
    if args.search_weights:
        equal = predictions.errors(predictions.average(members))
        for key in ("top1_error", "top5_error", "loss"):
            values[f"equal_weights_{key}"] = getattr(equal, key)
        values |= {"member_weights": weights}
        progress.note(
            "chosen on these images, the weights flatter their error; --member_weights tests others"
        )
    print(json.dumps(values) if args.json else logs.as_table(values, len(mean.classes)))
    return 0
