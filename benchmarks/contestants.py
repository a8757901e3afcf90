"""The contestants of `benchmarks.speed`: ours, PyTorch's, eqxvision's; each is a command to run."""

import argparse
import dataclasses
import itertools
import json
import pathlib
import statistics
import sys
from typing import Any

from benchmarks import tables

THEIRS = pathlib.Path(__file__).with_name("theirs.py")
THEIRS_EQX = pathlib.Path(__file__).with_name("theirs_eqx.py")
HUGE = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
MEMORY = {
    "": {},
    "huge pages": HUGE,
    "kept memory": tables.KEPT_MEMORY,
    "huge pages, kept memory": {**HUGE, **tables.KEPT_MEMORY},
}
AS_IT_COMES = "as it comes"


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A net and its work by `name`, in one of its settings.

    Attributes:
      setting: `AS_IT_COMES` or what was chosen, for the others; the precision if not float32, for ours.
    """

    name: str
    setting: str
    command: tuple[str, ...] = ()
    environment: dict[str, str] = dataclasses.field(default_factory=dict)

    def run(self, *steps: str) -> dict[str, Any]:
        """The JSON object that the process prints; `failed` says why there is none."""
        result = tables.answer([*self.command, *steps], self.environment)
        words = f"{self.name} ({self.setting or 'ours'})"
        if "failed" in result:
            print(f"{words}: {result['failed']}", file=sys.stderr)
        elif "seconds" in result:
            rate = result["images"] / statistics.median(result["seconds"])
            print(f"{words}: {rate:.1f} images/s", file=sys.stderr, flush=True)
        return result


def ours(given: argparse.Namespace, platform: str) -> list[Contestant]:
    """This project's nets, on accelerators in bfloat16, too."""
    narrow = {
        key: [int(n) for n in text.split(",")]
        for key, text in (("widths", given.widths), ("fc_widths", given.fc_widths))
        if text
    }
    made = []
    if platform == "cpu":
        made.append(Contestant("limit XLA and NumPy", "", tuple(tables.ours_command("limit"))))
    for precision in ("",) if platform == "cpu" else ("", "bfloat16"):
        net = narrow | ({"compute_dtype": precision} if precision else {})
        for variant, works in (
            ("paper", ("train", "forward", "ten views")),
            ("torchvision", ("train", "forward")),
        ):
            always = [f"--variant={variant}", *_sizes(given), f"--net={json.dumps(net)}"]
            for work in works:
                command = tuple(tables.ours_command(work, *always))
                made.append(Contestant(f"ours {variant} {work}", precision, command))
    return made


def torch(given: argparse.Namespace) -> list[Contestant]:
    """PyTorch's nets, each as it comes and in all settings that may be the best."""
    start = (given.torch_python, str(THEIRS))
    made = [Contestant("limit PyTorch", AS_IT_COMES, (*start, "limit"))]
    narrow = [f"--{key}={value}" for key in ("widths", "fc_widths") if (value := getattr(given, key))]
    for net, work in itertools.product(("paper", "no lrn", "torchvision"), ("train", "forward")):
        name, command = f"PyTorch {net} {work}", (*start, work, f"--net={net}", *_sizes(given), *narrow)
        made.append(Contestant(name, AS_IT_COMES, command))
        for layout, compiled, memory in itertools.product(
            ("channels_first", "channels_last"), (False, True), MEMORY
        ):
            arguments = [f"--layout={layout}", *(["--compiled"] if compiled else [])]
            arguments += ["--fused"] if work == "train" else []
            words = [layout.replace("_", " "), "compiled" if compiled else "", memory]
            words += ["fused SGD"] if work == "train" else []
            setting = ", ".join(word for word in words if word)
            made.append(Contestant(name, setting, (*command, *arguments), MEMORY[memory]))
    return made


def eqxvision(given: argparse.Namespace) -> list[Contestant]:
    """eqxvision's net, as it comes."""
    start = (given.eqxvision_python, str(THEIRS_EQX))
    return [
        Contestant(f"eqxvision {work}", AS_IT_COMES, (*start, work, *_sizes(given)))
        for work in ("train", "forward")
    ]


def torch_about(python: str) -> dict[str, Any]:
    """The versions of PyTorch and torchvision, or why they do not start."""
    return tables.answer([python, THEIRS, "about"])


def eqxvision_about(python: str) -> dict[str, Any]:
    """The versions of eqxvision and its libraries, or why it does not start."""
    return tables.answer([python, THEIRS_EQX, "about"])


def _sizes(given: argparse.Namespace) -> tuple[str, str]:
    return f"--batch={given.batch}", f"--image_size={given.image_size}"
