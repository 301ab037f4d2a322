"""A residual network's chains of operators, and what each of them costs beside normalization.

    python -m benchmarks.models.chains [--seconds S] [--check]

Convolution, normalization, activation, convolution, normalization, addition, activation: several of
these blocks, as they are, converted, and fused, in turns in a process for each size. Printed are
milliseconds of a pass, of its convolutions, of normalization with what is fused into it, and of
what remains; and page faults. A layer that is fast by itself may slow its neighbours down, by where
its results lie. A training step has its time and page faults alone.

The last table has passes after `bnext.torch.keep_memory()` beside PyTorch's as they come, in
processes that take turns. With --check it exits with 1 where a bound is not kept.
"""

import copy
import resource
import statistics
import sys
import time
from dataclasses import dataclass

from benchmarks.kit.command import checked, command, ended, seconds
from benchmarks.kit.processes import alone
from benchmarks.kit.turns import in_turns
from bnext.command_line import at_least

THREADS, BLOCKS, SECONDS = 2, 3, 5
FEWEST_TURNS = 4
PROCESSES = 3  # of each side, where processes take turns
NEIGHBOURS = 1.03  # the most that convolutions and the rest may take of PyTorch's time
KEPT = 1.6  # times as fast as PyTorch as it comes, at the largest size


@dataclass(frozen=True)
class Chain:
    """The shape of all arrays between the operators."""

    shape: tuple
    channels_last: bool = False

    @property
    def title(self):
        order = ", channels last" if self.channels_last else ""
        return f"{' x '.join(map(str, self.shape))}{order}"


LARGE = Chain((16, 64, 64, 64))
CHAINS = (LARGE, Chain((16, 64, 64, 64), True), Chain((1, 64, 64, 64)), Chain((8, 256, 14, 14)))


class Clock:
    """Seconds in functions of PyTorch's, and in the kernels of evaluation."""

    def __init__(self):
        self.spent = {}

    def times(self, owner, name, what):
        """Exchange a function of `owner` for one whose calls are timed as `what`."""
        function = getattr(owner, name)

        def timed(*arguments, **named):
            begin = time.perf_counter()
            result = function(*arguments, **named)
            self.spent[what] = self.spent.get(what, 0.0) + time.perf_counter() - begin
            return result

        setattr(owner, name, timed)


def network_of(torch, chain):
    """Blocks of 1x1 convolutions, which take no longer than the rest."""
    nn, width = torch.nn, chain.shape[1]

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = (nn.Conv2d(width, width, 1, bias=False) for _ in range(2))
            self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x):
            y = self.relu(self.bn1(self.conv1(x)))
            y = self.bn2(self.conv2(y))
            y += x
            return self.relu(y)

    return nn.Sequential(*(Block() for _ in range(BLOCKS)))


def prepared(chain, names):
    """The clock, a tensor, and the variants of a network; in a process that has no bnext yet."""
    import torch

    torch.set_num_threads(THREADS)
    clock = Clock()
    for function, what in (("conv2d", "convolutions"), ("batch_norm", "normalization")):
        clock.times(torch.nn.functional, function, what)  # before bnext knows the function
    import bnext.torch
    from bnext.torch import kernels

    clock.times(kernels, "evaluate_layer", "normalization")
    torch.manual_seed(0)
    model, x = network_of(torch, chain), torch.randn(chain.shape)
    if chain.channels_last:
        x = x.to(memory_format=torch.channels_last)
        model = model.to(memory_format=torch.channels_last)
    variants = {"torch": model}
    for name, fuse in (("converted", False), ("fused", True)):
        variants[name] = bnext.torch.convert(copy.deepcopy(model), fuse=fuse)
    return clock, x, {name: variants[name] for name in names}


def passes_of(torch, variants, x):
    """Calls of inference, and of training steps without an optimizer."""

    def infer(model):
        with torch.no_grad():
            return model(x)

    def train(model):
        model.zero_grad()
        model(x).sum().backward()

    for model in variants.values():
        model.eval()
    yield "inference", {name: lambda m=model: infer(m) for name, model in variants.items()}
    for model in variants.values():
        model.train()
    yield "step", {name: lambda m=model: train(m) for name, model in variants.items()}


def measure(chain, seconds, names=("torch", "converted", "fused"), keeps=False):
    """Medians by what is run, by variant: milliseconds of all and of parts, and page faults."""
    import torch

    clock, x, variants = prepared(chain, names)
    if keeps:
        import bnext.torch

        bnext.torch.keep_memory()
    found = {}
    for what, calls in passes_of(torch, variants, x):

        def sample_of(name, calls=calls):
            return sample(calls[name], clock)

        turns = in_turns(calls, seconds, sample=sample_of, fewest=FEWEST_TURNS)
        found[what] = {name: medians(each) for name, each in turns.samples.items()}
    return found


def sample(call, clock):
    """One call: seconds of its parts, and its page faults."""
    clock.spent = {}
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    begin = time.perf_counter()
    call()
    took = time.perf_counter() - begin
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    parts = {name: clock.spent.get(name, 0.0) for name in ("convolutions", "normalization")}
    return {"all": took, **parts, "rest": took - sum(parts.values()), "faults": faults / 1e3}


def medians(samples):
    """Milliseconds, and page faults as they are."""
    return {name: 1e3 * statistics.median(each[name] for each in samples) for name in samples[0]}


def told(found, title):
    """Print a table of one chain; what of it is not kept."""
    missed = []
    print(f"\n{title}")
    print(f"{'':22}{'all':>9}{'of torch':>10}{'conv':>9}{'norm':>9}{'rest':>9}{'faults':>9}")
    for what, variants in found.items():
        theirs = variants["torch"]
        for name, each in variants.items():
            row = f"{each['all']:9.2f}{each['all'] / theirs['all']:10.3f}"
            parts = ("convolutions", "normalization", "rest")
            row += "".join(f"{each[p]:9.2f}" if what == "inference" else 9 * " " for p in parts)
            print(f"{what + ', ' + name:22}{row}{each['faults']:9.0f}")
            beside = {"page faults": "faults"}
            if what == "inference":
                beside |= {"convolutions": "convolutions"}
            for text, part in beside.items():
                if each[part] > NEIGHBOURS * theirs[part] + 1:
                    missed.append(f"{title}: {what}, {name}: {text} of {each[part]:.2f}, PyTorch's "
                                  f"{theirs[part]:.2f}")  # fmt: skip
    return missed


def kept_ratio(seconds):
    """PyTorch's time as it comes over the time of fused passes with kept memory."""
    took = {"torch": [], "fused": []}
    for _ in range(PROCESSES):
        for name, each in took.items():
            found = alone(measure, LARGE, seconds / PROCESSES, (name,), name == "fused")
            each.append(found["inference"][name]["all"])
    return statistics.median(took["torch"]) / statistics.median(took["fused"])


@command(
    "benchmarks.models.chains",
    __doc__,
    seconds(SECONDS, "part", at_least(1)),
    checked(),
    needs_torch=True,
)
def main(options, torch):
    print(f"PyTorch {torch.__version__}, {THREADS} threads; milliseconds")
    missed = []
    for chain in CHAINS:
        missed += told(alone(measure, chain, options.seconds), chain.title)
    ratio = kept_ratio(options.seconds)
    print(f"\nfused inference after keep_memory(), {LARGE.title}: {ratio:.2f} times as fast as "
          "PyTorch's without it")  # fmt: skip
    if ratio < KEPT:
        missed.append(f"with kept memory {ratio:.2f} times as fast, at least {KEPT}")
    return ended(options, missed)


if __name__ == "__main__":
    sys.exit(main())
