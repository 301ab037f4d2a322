"""What a norm costs of a training step, in a fully connected and in a convolutional network.

    python -m benchmarks.models.norms [--seconds S] [--threads N]

Users were told that batch and layer normalization make a step 3 to 5 times slower. Each network is
trained without a norm, and with batch, layer and group normalization behind every layer but the
last: PyTorch's, and the same layers converted (`convert(model, norms="all")`). All of a network
take turns. Printed are the time of a step without a norm, how many times as long a step with the
norm takes, and which share of it the norm has.

Freed memory stays in the process: a step with page faults takes up to a third longer than the same
step without, and how many it has follows from what other steps have freed before it.
"""

import copy
import sys

from benchmarks.kit.command import command, seconds, threads
from benchmarks.kit.turns import in_turns
from bnext.bench.heap import recycled_pages
from bnext.command_line import at_least

NORMS = ("batch", "layer", "group")
SECONDS, THREADS = 30, 2
ROOM = 1 << 30  # bytes that all arrays of a step fit in
CLASSES, GROUPS = 10, 32


def fully_connected(torch, norm):
    """784, three times 1024 and 10 units with ReLU; and the shape of a batch of 256 images."""
    nn = torch.nn
    of_units = {
        "batch": lambda: nn.BatchNorm1d(1024),
        "layer": lambda: nn.LayerNorm(1024),
        "group": lambda: nn.GroupNorm(GROUPS, 1024),
    }
    layers = []
    for entering in (784, 1024, 1024):
        layers += [nn.Linear(entering, 1024), *([of_units[norm]()] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(1024, CLASSES)), (256, 784)


def convolutional(torch, norm):
    """Four 3x3 convolutions, two of stride 2, with ReLU; and 16 images of 64x64."""
    nn = torch.nn

    def of_channels(channels, extent):
        return {
            "batch": lambda: nn.BatchNorm2d(channels),
            "layer": lambda: nn.LayerNorm([channels, extent, extent]),
            "group": lambda: nn.GroupNorm(GROUPS, channels),
        }[norm]()

    layers, entering, extent = [], 3, 64
    for channels, stride in ((64, 1), (64, 1), (128, 2), (128, 2)):
        extent //= stride
        layers.append(nn.Conv2d(entering, channels, 3, stride, padding=1))
        layers += [*([of_channels(channels, extent)] if norm else []), nn.ReLU()]
        entering = channels
    end = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(entering, CLASSES)
    return nn.Sequential(*layers, *end), (16, 3, 64, 64)


NETWORKS = {"fully connected": fully_connected, "convolutional": convolutional}


def measure(torch, build, seconds):
    """Turns of a network's steps: without a norm, and by norm and library."""
    import bnext.torch
    from benchmarks.models.training import sgd_step

    def step_of(model):
        x, labels = torch.randn(shape), torch.randint(CLASSES, shape[:1])
        return sgd_step(model, x, labels, lr=1e-4)

    torch.manual_seed(0)
    calls = {}
    for norm in (None, *NORMS):
        model, shape = build(torch, norm)
        if norm is None:
            calls["none"] = step_of(model)
            continue
        ours = bnext.torch.convert(copy.deepcopy(model), norms="all")
        calls[norm, "PyTorch"] = step_of(model)
        calls[norm, "bnext"] = step_of(ours)
    return in_turns(calls, seconds)


def table(turns):
    """Rows of a network: the norm, and for each library the ratio and the share of a step."""
    rows = []
    for norm in NORMS:
        row = [norm]
        for library in ("PyTorch", "bnext"):
            ratio = turns.ratio((norm, library), "none")[0]
            row += [ratio, 1.0 - 1.0 / ratio]
        rows.append(row)
    return rows


@command(
    "benchmarks.models.norms",
    __doc__,
    seconds(SECONDS, "network", at_least(1)),
    threads(THREADS),
    needs_torch=True,
)
def main(options, torch):
    from bnext.bench.measure import threads_set_to

    print(f"PyTorch {torch.__version__}, {options.threads} threads; steps, beside one without")
    with threads_set_to(options.threads), recycled_pages(ROOM):
        for name, build in NETWORKS.items():
            turns = measure(torch, build, options.seconds)
            alone = turns.packed()["none"][0] * 1e3
            print(f"\n{name}: {alone:.1f} ms without a norm")
            print("norm    PyTorch        bnext")
            for norm, *figures in table(turns):
                theirs, of_theirs, ours, of_ours = figures
                print(f"{norm:6s}  {theirs:.2f}x ({of_theirs:4.0%})  {ours:.2f}x ({of_ours:4.0%})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
