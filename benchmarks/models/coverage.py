"""What `bnext.torch.convert` does to models of other packages, and whether they compute the same.

    python -m benchmarks.models.coverage [--only PATTERN] [--part count|compare] [--check]

First all models that torchvision, timm, segmentation-models, PyG and transformers list, those that
are installed, are built and converted. Printed are how many layers of batch normalization there
are, how many `convert` exchanges, and how many it names in its report, by reasons. Layers are
counted here by what they have (a running mean and a running variance), whatever their class is.

Then sixty architectures do two steps of training and a pass of inference in float64, as they are,
converted, and converted with `fuse` and `recompute`. Printed is how far losses, gradients and
running statistics are from PyTorch's, of the largest of each tensor. With --check it exits with 1
where a layer is in neither list, where a state dict has other names, or where the largest of these
distances is above its bound.
"""

import copy
import importlib.util
import re
import sys
import warnings
from collections import Counter

from benchmarks.kit.command import checked, command, ended, option
from benchmarks.models.families import ARCHITECTURES, FAMILIES, inputs_of

BOUND = 1e-6  # in float64: 2.2e-16 for each of 10 to 200 layers, which amplify what comes before
STEPS, RATE = 2, 1e-3
WAYS = {"converted": {}, "fused, recomputed": {"fuse": True, "recompute": True}}


def kept_silent(run):
    """Run with no warnings, which packages give by the dozen."""

    def call(*given):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return run(*given)

    return call


# --- coverage -------------------------------------------------------------------------------------


def layers_of(torch, model):
    """Names of modules that normalize by running statistics, and are no instance normalization."""
    instance = torch.nn.modules.instancenorm._InstanceNorm
    return {
        name
        for name, module in model.named_modules()
        if not isinstance(module, instance)
        and all(getattr(module, each, None) is not None for each in ("running_mean", "running_var"))
    }


@kept_silent
def counted(torch, family, name):
    """Layers of one model, the exchanged ones, those that are left with reasons, and the others."""
    import bnext.torch

    try:
        with torch.device("meta"):
            model = family.build(name)
    except (NotImplementedError, RuntimeError):  # it looks at values
        model = family.build(name)
    found = layers_of(torch, model)
    report = bnext.torch.report(bnext.torch.convert(model))
    exchanged = {each.name for each in report.exchanged if each.norm == "batch"}
    left = {each.name: each.reason for each in report.left if each.norm == "batch"}
    return (
        len(found | exchanged | left.keys()),
        len(exchanged),
        left,
        found - exchanged - left.keys(),
    )


def count_all(torch, only):
    """Print a line for each package, and one for each reason; give what is in neither list."""
    unnamed = []
    for family in FAMILIES.values():
        if importlib.util.find_spec(family.package) is None:
            print(f"{family.package}: not installed")
            continue
        models = layers = exchanged = 0
        reasons, failed = Counter(), []
        for name in family.names():
            if not re.search(only, f"{family.package} {name}"):
                continue
            try:
                total, ours, left, others = counted(torch, family, name)
            except Exception as error:  # of the package: it wants weights, another package
                failed.append(f"{name} ({type(error).__name__})")
                continue
            models, layers, exchanged = models + 1, layers + total, exchanged + ours
            reasons.update(left.values())
            unnamed += [f"{family.package} {name}: {each} is not named" for each in sorted(others)]
        version = sys.modules[family.package].__version__
        print(
            f"{family.package} {version}: {exchanged} of {layers} layers of {models} models",
            flush=True,
        )
        for reason, number in reasons.most_common():
            print(f"    {number} stay: {reason}")
        if failed:
            shown = ", ".join(failed[:5]) + (", ..." if len(failed) > 5 else "")
            print(f"    {len(failed)} models cannot be built here: {shown}")
    return unnamed


# --- the same values ------------------------------------------------------------------------------


def tensors_in(torch, result):
    """Tensors of floating-point values in what a model returns, in order."""
    if isinstance(result, torch.Tensor):
        return [result] if result.is_floating_point() else []
    if isinstance(result, dict):
        result = result.values()
    if isinstance(result, tuple | list) or hasattr(result, "__iter__"):
        return [each for part in result if part is not None for each in tensors_in(torch, part)]
    return []


def trained(torch, model, inputs):
    """Losses, the last gradients, buffers, and the output in evaluation."""
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    losses = []
    for step in range(STEPS):
        torch.manual_seed(step)  # drop-out is the same
        optimizer.zero_grad()
        loss = sum(each.square().mean() for each in tensors_in(torch, model(*inputs)))
        loss.backward()
        losses.append(loss.detach())
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        optimizer.step()
    model.eval()
    with torch.no_grad():
        outputs = tensors_in(torch, model(*inputs))
    return {
        "losses": dict(enumerate(losses)), "gradients": gradients,
        "statistics": {n: b for n, b in model.named_buffers() if b is not None},
        "outputs": dict(enumerate(outputs)), "names": list(model.state_dict()),
    }  # fmt: skip


def distance(actual, expected):
    """How far tensors are apart, of the largest value of all of these."""
    assert actual.keys() == expected.keys()
    largest = max(
        (float(each.double().abs().max()) for each in expected.values() if each.numel()),
        default=1.0,
    )
    apart = [
        float((actual[name].double() - each.double()).abs().max())
        for name, each in expected.items()
        if each.numel()
    ]
    return max(apart, default=0.0) / max(largest, 1e-30)


@kept_silent
def compared(torch, build, name, inputs):
    """How many layers there are, and for each way the distances of four kinds of tensors."""
    import bnext.torch

    torch.manual_seed(0)
    model = build(name).double().train()
    expected = trained(torch, copy.deepcopy(model), inputs)
    rows = {}
    for way, how in WAYS.items():
        other = bnext.torch.convert(copy.deepcopy(model), **how)
        actual = trained(torch, other, inputs)
        assert actual.pop("names") == expected["names"], "the state dict has other names"
        rows[way] = {kind: distance(actual[kind], expected[kind]) for kind in actual}
    report = bnext.torch.report(other)
    return len(report.exchanged), len(report.fused), rows


def compare_all(torch, only):
    """Print a line for each architecture; give those that are too far from PyTorch's."""
    broken, done = [], 0
    print("\nlayers fused   losses gradients statistics  outputs (converted; fused and recomputed)")
    for package, name, build, shape in ARCHITECTURES:
        title = f"{package} {name}"
        if not re.search(only, title) or importlib.util.find_spec(package) is None:
            continue
        inputs = tuple(
            each.double() if each.is_floating_point() else each
            for each in inputs_of(torch, package, shape)
        )
        try:
            layers, fused, rows = compared(torch, build, name, inputs)
        except Exception as error:
            broken.append(f"{title}: {type(error).__name__}: {str(error)[:200]}")
            continue
        done += 1
        text = ";".join("".join(f" {each:9.1e}" for each in row.values()) for row in rows.values())
        print(f"{layers:6d} {fused:5d}{text}  {title}", flush=True)
        worst = max(each for row in rows.values() for each in row.values())
        if not worst <= BOUND:
            broken.append(f"{title}: {worst:.1e} from PyTorch's, at most {BOUND:.0e}")
    print(f"{done} architectures")
    return broken


@command(
    "benchmarks.models.coverage",
    __doc__,
    option("--only", default="", metavar="PATTERN", help="models whose package and name have it"),
    option("--part", choices=("count", "compare"), help="one of the two parts"),
    checked("fail where a layer is not named, or values differ"),
    needs_torch=True,
)
def main(options, torch):
    print(f"PyTorch {torch.__version__}")
    broken = []
    if options.part != "compare":
        broken += count_all(torch, options.only)
    if options.part != "count":
        broken += compare_all(torch, options.only)
    return ended(options, broken)


if __name__ == "__main__":
    sys.exit(main())
