"""Whole networks, large and small, with PyTorch's layers and bnext's: steps and inference.

    python -m benchmarks.models.zoo [--only PATTERN] [--seconds S] [--processes N] [--bound]
                                    [--check]

Each network is measured in five processes of its own, in turns: as it is; converted; and converted
with what follows normalization fused (`convert(model, fuse=True)`). Printed are the time of the
first, how many times as fast the others are (the median of the processes, the least and the most),
and the page faults of a step or a pass of each. With --bound there is a fourth, the network without
normalization: how many times as fast it would be if normalization cost nothing. With --check it
exits with 1 where a bound is not kept.

glibc's allocator gives memory back, or keeps it, by what a process has freed before: so one network
does not follow another. And processes differ where turns within one agree: a second copy of a model
takes the same time to half a per cent, the same ratio in another process differs by up to 4 % (by
the memory that it got), which is why one process decides nothing.
"""

import copy
import re
import resource
import statistics
import sys
import warnings
from dataclasses import dataclass

from benchmarks.kit.command import checked, command, ended, flag, option, seconds
from benchmarks.kit.processes import alone
from benchmarks.kit.turns import in_turns
from bnext.command_line import at_least

THREADS = 2
CLASSES = 10
PROCESSES = 5
SECONDS = 40  # in all of them
CALLS = 3  # in which page faults are counted


@dataclass(frozen=True)
class Line:
    """A network, the shape of its input, what is measured, and the bounds of both ratios."""

    network: str
    shape: tuple
    kind: str  # "step", "bfloat16 step" (by autocast), "compiled step" or "inference"
    converted: float | None = None
    fused: float | None = None
    channels_last: bool = False

    @property
    def title(self):
        layout = " channels last" if self.channels_last else ""
        return f"{self.network}, {' x '.join(map(str, self.shape))}{layout}: {self.kind}"


IMAGES = (16, 3, 128, 128)
SMALL_IMAGES = (8, 3, 96, 96)
LINES = (
    Line("resnet50", IMAGES, "compiled step", 0.99, 1.05),
    Line("resnet18", SMALL_IMAGES, "compiled step", 1.0, 1.0),
    Line("mobilenet_v2", SMALL_IMAGES, "compiled step", 1.0, 1.0),
    Line("mobilenet_v3_large", SMALL_IMAGES, "compiled step", 1.0, 1.10),
    Line("efficientnet_b0", SMALL_IMAGES, "compiled step", 1.0, 1.0),
    Line("densenet121", SMALL_IMAGES, "compiled step", 1.0, 1.0),
    Line("mlp", (60, 784), "compiled step", 1.0, 1.0),
    Line("gin", (2000, 64), "compiled step", 1.0, 1.0),
    Line("resnet50", IMAGES, "step", 1.0, 1.12),
    Line("resnet50", SMALL_IMAGES, "step", 1.0, 1.03, channels_last=True),
    Line("resnet50", SMALL_IMAGES, "bfloat16 step", 1.0, 1.03),
    Line("mobilenet_v3_large", SMALL_IMAGES, "bfloat16 step", 1.0, 1.03),
    Line("resnet18", IMAGES, "step", 1.0, 1.05),
    Line("mobilenet_v3_large", IMAGES, "step", 1.0, 1.20),
    Line("efficientnet_b0", IMAGES, "step", 1.0, 1.20),
    Line("densenet121", (8, 3, 128, 128), "step", 1.0, 1.15),
    Line("mlp", (60, 784), "step", 1.0, 1.10),
    Line("gin", (2000, 64), "step", 1.0, 1.0),
    Line("mlp", (60, 784), "inference", 1.0, 1.0),
    Line("gin", (2000, 64), "inference", 1.0, 1.0),
    *(
        Line(network, shape, "inference", 1.0, bound)
        for shape in ((1, 3, 224, 224), (8, 3, 128, 128))
        for network, bound in (
            ("resnet18", 1.0),
            ("resnet50", 1.1),
            ("mobilenet_v2", 1.1),
            ("efficientnet_b0", 1.1),
            ("densenet121", 1.0),
        )
    ),
)


def call_of(torch, model, line):
    """One step of training, or one pass of inference."""
    x = torch.randn(line.shape)
    if line.channels_last:
        model, x = (each.to(memory_format=torch.channels_last) for each in (model, x))
    if line.kind == "inference":
        model.eval()

        def infer():
            with torch.no_grad():
                return model(x)

        return infer
    from benchmarks.models.training import sgd_step

    network = torch.compile(model.train()) if line.kind.startswith("compiled") else model.train()
    labels = torch.randint(CLASSES, line.shape[:1])
    narrow = line.kind.startswith("bfloat16")
    return sgd_step(network, x, labels, narrow, lr=1e-4, momentum=0.9)


def model_of(line):
    """The network of a line, with random parameters."""
    from torchvision import models

    from benchmarks.models.networks import GIN, MLP

    small = {"gin": GIN, "mlp": MLP}
    if line.network in small:
        return small[line.network](classes=CLASSES)
    return getattr(models, line.network)(num_classes=CLASSES)


def measure(line, seconds, bound):
    """Milliseconds of the first, how many times as fast the others are, page faults of all.

    With `bound` the network without normalization is one of the others.
    """
    import torch

    import bnext.torch
    from benchmarks.models.training import with_layers
    from bnext.bench.measure import threads_set_to

    warnings.filterwarnings("ignore", module="torch")
    with threads_set_to(THREADS):
        torch.manual_seed(0)
        model = model_of(line)
        variants = {"torch": model}
        for name, fuse in (("converted", False), ("fused", True)):
            variants[name] = bnext.torch.convert(copy.deepcopy(model), fuse=fuse)
        if bound:
            variants["none"] = with_layers(model, "none")
        calls = {name: call_of(torch, variant, line) for name, variant in variants.items()}
        turns = in_turns(calls, seconds)
        faults = {name: faults_of(call) for name, call in calls.items()}
    ratios = {name: turns.ratio("torch", name)[0] for name in variants if name != "torch"}
    return turns.packed()["torch"][0] * 1e3, ratios, faults


def faults_of(call):
    """Page faults of a call behind others like it."""
    call()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(CALLS):
        call()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // CALLS


@command(
    "benchmarks.models.zoo",
    __doc__,
    option("--only", default="", metavar="PATTERN", help="lines that have it"),
    seconds(SECONDS, "line", at_least(1)),
    option("--processes", type=at_least(1), default=PROCESSES, metavar="N", help="for each line"),
    flag("--bound", "also the networks without normalization"),
    checked(),
    needs_torch=True,
)
def main(options, torch):
    try:
        import torchvision  # noqa: F401
    except ImportError:
        print("zoo.py: needs PyTorch, and torchvision of its version", file=sys.stderr)
        return 2
    print(f"PyTorch {torch.__version__}, {THREADS} threads")
    names = ["converted", "fused", *(["none"] if options.bound else [])]
    columns = "  ".join(f"{name:18s}" for name in names)
    print(f"     torch  {columns}  page faults of all")
    missed = []
    for line in LINES:
        if not re.search(options.only, line.title):
            continue
        share = options.seconds / options.processes
        runs = [alone(measure, line, share, options.bound) for _ in range(options.processes)]
        times, ratios, faults = zip(*runs, strict=True)
        row = f"{statistics.median(times):7.1f} ms"
        found = {}
        for name in names:
            of_processes = [each[name] for each in ratios]
            found[name] = statistics.median(of_processes)
            row += f"  {found[name]:.3f} ({min(of_processes):.3f}-{max(of_processes):.3f})"
        row += f"  {' '.join(f'{each:6d}' for each in faults[-1].values())}  {line.title}"
        print(row, flush=True)
        for name, ratio in found.items():
            bound = getattr(line, name, None)
            if bound is not None and ratio < bound:
                missed.append(f"{line.title}, {name}: {ratio:.3f}, at least {bound}")
    return ended(options, missed)


if __name__ == "__main__":
    sys.exit(main())
