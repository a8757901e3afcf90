"""One contestant of `benchmarks.speed`, in a process of its own: PyTorch, without this project.

    python -m benchmarks.theirs train --net=paper --layout=channels_last --compiled

Prints a JSON object as `benchmarks.ours` does. `paper` is the same two-column net: groups in the layers that
see one column only, normalisation with the paper's constants (alpha is 5e-4 because PyTorch divides it by the
size), dropout, SGD with momentum and weight decay; `no lrn` is the same net without normalisation,
`torchvision` is torchvision's alexnet.
"""

import argparse
import functools
import json
import platform
import statistics
import time

import torch
from torch import nn
from torch.nn import functional

from benchmarks import layers, tables


class Paper(nn.Module):
    """The paper's net, with maps as large as ours (padding 2 at conv1 gives 55 x 55)."""

    def __init__(self, lrn, image_size, widths, fc_widths):
        super().__init__()
        c1, c2, c3, c4, c5 = widths[:5]

        def norm():
            return [nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)] if lrn else []

        self.convolutions = nn.Sequential(
            nn.Conv2d(3, c1, 11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            *norm(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(c1, c2, 5, padding=2, groups=2),
            nn.ReLU(inplace=True),
            *norm(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(c2, c3, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(c3, c4, 3, padding=1, groups=2),
            nn.ReLU(inplace=True),
            nn.Conv2d(c4, c5, 3, padding=1, groups=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
        )
        with torch.no_grad():
            flat = self.convolutions(torch.zeros(1, 3, image_size, image_size)).numel()
        self.connected = nn.Sequential(
            nn.Flatten(),
            nn.Linear(flat, fc_widths[0]),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(fc_widths[0], fc_widths[1]),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(fc_widths[1], 1000),
        )

    def forward(self, x):
        return self.connected(self.convolutions(x))


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("work", choices=("train", "forward", "layers", "limit", "about"))
    parser.add_argument("--net", choices=("paper", "no lrn", "torchvision"), default="paper")
    parser.add_argument("--layout", choices=("channels_first", "channels_last"), default="channels_first")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--fused", action="store_true", help="SGD(fused=True)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--precision",
        choices=("float32", "default", "bfloat16"),
        default="float32",
        help="default: TF32 where the device has it; bfloat16: autocast (AMP)",
    )
    parser.add_argument("--calls", type=int, default=1, help="steps back to back each time")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--widths", default="96,256,384,384,256")
    parser.add_argument("--fc_widths", default="4096,4096")
    parser.add_argument("--warm", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    given = parser.parse_args()
    work = {"about": lambda _: about(), "limit": limit, "layers": single_layers}.get(given.work, net)
    print(json.dumps({**work(given), "peak_bytes": tables.peak_bytes()}))


def timed(run, warm, steps, calls=1, finish=None):
    seconds = []
    for number in range(max(warm, 1) + steps):
        began = time.perf_counter()
        for _ in range(calls):
            run()
        if finish:
            finish()
        if number >= max(warm, 1):
            seconds.append((time.perf_counter() - began) / calls)
    return seconds


def net(given):
    torch.manual_seed(0)
    if given.net == "torchvision":
        import torchvision

        model = torchvision.models.alexnet(weights=None)
    else:
        widths, fc_widths = ([int(n) for n in text.split(",")] for text in (given.widths, given.fc_widths))
        model = Paper(given.net == "paper", given.image_size, widths, fc_widths)
    on_gpu = given.device == "cuda"
    if on_gpu:
        tf32 = given.precision != "float32"
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.cudnn.benchmark = True
    layout = torch.channels_last if given.layout == "channels_last" else torch.contiguous_format
    model = model.to(given.device, memory_format=layout).train(given.work == "train")
    images = torch.randint(0, 256, (given.batch, 3, given.image_size, given.image_size), dtype=torch.uint8)
    images = images.to(given.device, memory_format=layout)
    labels = torch.randint(0, 1000, (given.batch,), device=given.device)

    def forward(images):
        with torch.autocast(given.device, torch.bfloat16, enabled=given.precision == "bfloat16"):
            return model(images.float() - 120.0)

    def loss_of(images, labels):
        return functional.cross_entropy(forward(images).float(), labels)

    if given.compiled:
        forward, loss_of = torch.compile(forward), torch.compile(loss_of)
    settings = {"fused": True} if given.fused else {}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, **settings)

    def train():
        optimizer.zero_grad()
        loss_of(images, labels).backward()
        optimizer.step()

    def infer():
        with torch.inference_mode():
            forward(images)

    run, finish = train if given.work == "train" else infer, torch.cuda.synchronize if on_gpu else None
    seconds = timed(run, given.warm, given.steps, given.calls, finish)
    return {
        "seconds": seconds,
        "images": given.batch,
        "device_peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "torch": torch.__version__,
    }


def single_layers(given):
    """Seconds of each call by layer and program (`benchmarks.layers`)."""
    found = {}
    for name, side, window, stride, padding, inputs, outputs in layers.LAYERS:
        shapes = [(given.batch, inputs, side, side), (outputs, inputs, window, window)]
        x, kernel = (torch.randn(s if side else s[:2]) for s in shapes)
        if side:
            x, kernel = (a.to(memory_format=torch.channels_last) for a in (x, kernel))
            forward = functools.partial(functional.conv2d, x, kernel, stride=stride, padding=padding)
            g = torch.randn_like(forward())
            geometry = [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1
            backward = functools.partial(torch.ops.aten.convolution_backward, g, x, kernel, None, *geometry)
            gradients = [functools.partial(backward, [of_x, not of_x, False]) for of_x in (False, True)]
        else:
            g = torch.randn(given.batch, outputs)
            forward = functools.partial(functional.linear, x, kernel)
            gradients = [functools.partial(torch.mm, g.T, x), functools.partial(torch.mm, g, kernel)]
        for program, run in zip(layers.PROGRAMS, (forward, *gradients), strict=True):
            if (name, program) in layers.programs():
                with torch.inference_mode():
                    found[f"{name} {program}"] = timed(run, given.warm, given.steps)
    return found


def limit(given):
    rates = {}
    for size in tables.PRODUCT_SIZES:
        a, b = torch.rand(size, size), torch.rand(size, size)
        seconds = timed(lambda a=a, b=b: a @ b, given.warm, given.steps)
        rates[f"PyTorch {size}"] = 2 * size**3 / statistics.median(seconds)
    source, target = (torch.ones(tables.COPY_BYTES, dtype=torch.uint8) for _ in range(2))
    seconds = timed(lambda: target.copy_(source), given.warm, given.steps)
    return {"product_rates": rates, "copy_bytes_per_second": tables.COPY_BYTES / statistics.median(seconds)}


def about():
    import torchvision

    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
    return {"versions": {**versions, "torch_python": platform.python_version()}}


if __name__ == "__main__":
    main()
