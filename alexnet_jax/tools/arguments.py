"""The arguments of each command, apart from `train` and `summary`, which have the flags of a config.

Kept apart from the commands, so that `--help` and a wrong argument are answered without importing JAX.
"""

import argparse
import contextlib
from collections.abc import Sequence

from alexnet_jax.common.command_line import Parser, new_file, new_folder, user_path

WEIGHTS = (
    "a file of weights, a run's workdir, or published weights by name: torchvision (233 MB, fetched once), "
    "caffe or caffenet"
)


def _weights(parser: Parser) -> None:
    parser.add_argument("--weights", default="torchvision", help=WEIGHTS)
    _of_weights(parser)


def _of_weights(parser: Parser) -> None:
    """What a file of weights does not say by itself."""
    parser.add_argument("--variant", help="the net of the weights, if their shapes fit several: caffe, ...")
    mean = "a Caffe net's mean image, .binaryproto or .npy (default: its mean colour)"
    parser.add_argument("--mean", metavar="FILE", help=mean)


def _views(parser: Parser) -> None:
    help = "1: central crop; 10: the paper's ten views"
    parser.add_argument("--views", type=int, choices=(1, 10), default=1, help=help)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number from 1")
    return int(text)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: give numbers such as 2,1,1") from None


def predict(parser: Parser) -> None:
    """Names what is in images.

    python -m alexnet_jax predict IMAGE... [--weights=WEIGHTS] [--topk=5] [--views=10] [--json]
    python -m alexnet_jax predict photos/val --weights=WEIGHTS --confusion=confusion.png

    IMAGE is a file or a folder. Without one, or with -, standard input is read: either one image, or a path
    per line, each answered as it comes. For a folder whose images are in folders named after the net's
    classes, accuracy and the errors by class follow (with --json, as a last object).
    """
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="files and folders; - for standard input")
    _weights(parser)
    parser.add_argument("--topk", type=_count, default=5, help="number of classes to name")
    _views(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON object per line")
    picture = "the confusion matrix to draw, with a .csv of the same name beside it"
    parser.add_argument("--confusion", type=new_file(".png"), help=picture)


def features(parser: Parser) -> None:
    """Writes the activations of a layer for other programs.

    python -m alexnet_jax features PHOTOS --weights=torchvision --layer=pool5 --out=pool5.npz
    """
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files and folders")
    _weights(parser)
    layers = "conv1, activation1, pool1, ..., fc7, activation7 or fc8; maps are height x width x channels"
    parser.add_argument("--layer", default="pool5", help=layers)
    parser.add_argument("--out", required=True, type=new_file(".npz"), help="the .npz file to write")


def probe(parser: Parser) -> None:
    """Fits a linear probe: how well does a layer separate classes that the net was not trained on?

    python -m alexnet_jax features PHOTOS/train --layer=pool5 --out=train.npz
    python -m alexnet_jax features PHOTOS/val --layer=pool5 --out=val.npz
    python -m alexnet_jax probe train.npz val.npz

    Softmax regression on standardised features, optimised by L-BFGS from zero, so nothing is random. An
    image's class is the name of its folder.
    """
    parser.add_argument("train", type=user_path, help="the features to fit to, a file")
    parser.add_argument("test", type=user_path, help="the features to test on, a file")
    parser.add_argument("--l2", type=float, default=0.1, help="weight decay")
    parser.add_argument("--json", action="store_true", help="print JSON")


def nearest(parser: Parser) -> None:
    """Finds the images nearest to an image by their features (the paper's Figure 4).

    python -m alexnet_jax features PHOTOS --layer=activation7 --out=photos.npz
    python -m alexnet_jax nearest photos.npz --k=6 --figure=nearest.png
    """
    parser.add_argument("features", type=user_path, help="the features to search, a file")
    queries = "features of the images to look for (default: each image itself)"
    parser.add_argument("--queries", type=user_path, help=queries)
    parser.add_argument("--k", type=_count, default=6, help="number of images to find")
    parser.add_argument("--json", action="store_true", help="print a JSON object per line")
    picture = new_file(".png", ".jpg", ".jpeg")
    parser.add_argument(
        "--figure", type=picture, help="a picture to draw, of at most 20 queries and 12 images each"
    )


def ensemble(parser: Parser) -> None:
    """Tests one net or an ensemble: errors, a file of predictions, the ILSVRC test server's format.

    python -m alexnet_jax ensemble runs/a runs/b --views=10 --out=predictions.npz
    python -m alexnet_jax ensemble a.npz b.npz --member_weights=2,1
    python -m alexnet_jax ensemble a.npz b.npz --search_weights
    python -m alexnet_jax ensemble runs/a --images=TEST --submission=test.txt --devkit=KIT

    Each MEMBER is a run's workdir, a file of weights (or the name of published ones), or a file of
    predictions that this command wrote. Their probabilities are averaged (Table 2). Weights that
    --search_weights finds flatter the error on the same images: test them on others. Without --source and
    --images, the images are the test images of the first workdir.
    """
    members = "workdirs, weights, predictions"
    parser.add_argument("members", nargs="+", metavar="MEMBER", type=user_path, help=members)
    _of_weights(parser)
    parser.add_argument("--member_weights", type=_numbers, help="such as 2,1,1 (default: equal)")
    search = "find the member weights with the smallest top-1 error; needs labels"
    parser.add_argument("--search_weights", action="store_true", help=search)
    _views(parser)
    parser.add_argument("--source", help="as data.source in a config (default: the first workdir's)")
    parser.add_argument("--images", action="append", metavar="PATH", help="a file or folder without labels")
    parser.add_argument("--out", type=new_file(".npz"), help="the file of predictions to write, .npz")
    parser.add_argument("--submission", type=new_file(), help="the file to write for the ILSVRC test server")
    parser.add_argument("--devkit", type=user_path, help="the development kit, which numbers the classes")
    parser.add_argument("--json", action="store_true", help="print JSON")


def export(parser: Parser) -> None:
    """Writes trained weights for other programs.

    python -m alexnet_jax export WEIGHTS OUT

    WEIGHTS is whatever `load_pretrained` reads, such as a run's workdir. The ending of OUT chooses the
    format: `.safetensors` (torchvision's names and layout), `.npz` (Caffe's), or `.stablehlo`, the inference
    function with its weights and preprocessing, for any program that runs StableHLO.
    """
    parser.add_argument("weights", help=WEIGHTS)
    _of_weights(parser)
    out = new_file(".safetensors", ".npz", ".stablehlo")
    parser.add_argument("out", type=out, help="the file to write: .safetensors, .npz or .stablehlo")


def prepare(parser: Parser) -> None:
    """Any source to prepared records: a TFDS directory of square JPEGs and the statistics of their colours.

    python -m alexnet_jax prepare --source=folder:PHOTOS --out=PREPARED

    Decoding large photographs and scaling them down takes most of the time of reading ImageNet; here it is
    done once. After any interruption the same command continues: shards are finished one at a time in
    `OUT.partial`, which is renamed to `OUT` when all are there and their counts have been checked.
    """
    parser.add_argument("--source", required=True, help="the images to prepare, as data.source in a config")
    parser.add_argument("--out", required=True, type=new_folder, help="the directory to create")
    parser.add_argument("--data_dir", help="where TFDS keeps its data sets (default: ~/tensorflow_datasets)")
    both = ["train", "test"]
    parser.add_argument("--splits", nargs="+", default=both, choices=both, help="train, test or both")
    parser.add_argument("--resize_size", type=int, default=256, help="side of the squares in pixels")
    parser.add_argument("--quality", type=int, default=95, help="quality of the JPEGs, 1 to 100")
    parser.add_argument("--shard_examples", type=int, default=1250, help="images per file")


def _fraction(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) < 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text}: must be above 0 and below 1, such as 0.2")


def split(parser: Parser) -> None:
    """Splits a folder of one folder per class into training and validation images.

    python -m alexnet_jax split PHOTOS [--val=0.2] [--seed=0] [--out=PHOTOS-split] [--copy]

    Each class gives the same fraction. The new folder has `train/<class>/` and `val/<class>/`, as
    data.source=folder:... reads them, with hard links to the images where the disk has links. PHOTOS stays as
    it is.
    """
    parser.add_argument("folder", type=user_path, help="a folder with a folder of images per class")
    parser.add_argument("--val", type=_fraction, default=0.2, help="fraction of each class to test on")
    parser.add_argument("--seed", type=int, default=0, help="of the random choice, 0 or more")
    parser.add_argument("--out", type=new_folder, help="the folder to create (default: PHOTOS-split)")
    parser.add_argument("--copy", action="store_true", help="copy the images instead of linking them")


def demo(parser: Parser) -> None:
    """Serves a page to try a net: drop a picture, see what the net sees in it.

    python -m alexnet_jax demo [--weights=WEIGHTS] [--gallery=PHOTOS] [--port=7860]

    Shows the most probable classes, where the net looks for the first of them, the activations of conv1 and
    conv5, and the nearest images of the gallery, a folder of images; by default a run's test images.
    Needs gradio: pip install ".[demo]" in a checkout. Only this machine can open the page, unless --host says
    otherwise.
    """
    _weights(parser)
    gallery = "a folder of images to search (default: a run's test images)"
    parser.add_argument("--gallery", type=user_path, help=gallery)
    parser.add_argument("--host", default="127.0.0.1", help="address to serve at; 0.0.0.0 is open to all")
    parser.add_argument("--port", type=int, default=7860, help="port to serve at")


_ADD = {
    add.__name__: add for add in (predict, features, probe, nearest, ensemble, export, prepare, split, demo)
}


def parse(command: str, argv: Sequence[str]) -> argparse.Namespace:
    """Parses the arguments of `command`; `--help` prints its description and exits.

    Raises:
      UserError: an argument is wrong, or a file to write cannot be written.
    """
    add = _ADD[command]
    parser = Parser(f"alexnet_jax {command}", add.__doc__)
    add(parser)
    return parser.parse_args(argv)
