"""Whether networks with either library's layers learn the same, as far as rounding lets them.

Training is chaotic: what two roundings differ by grows from step to step. So the yardstick is
measured as well. Controls have PyTorch's layers and one more rounding: each output of a layer of
batch normalization is moved, at random, by up to a unit in the last place of the largest one: what
is summed and centred before it is scaled is no more exact than that, whoever does it. With bnext's
layers losses may leave PyTorch's path as far as that takes the farthest of the controls, times
`FACTOR`; and the first loss, which nothing has amplified, by a few units alone. Once a control has
left by more than `PARTED`, paths have little to do with each other any more, and nothing is
compared. In float64 that comes later.
"""

import math

import torch

from benchmarks.models.training import Training, normalizations

CONTROLS = 3
FACTOR = 10
PARTED = 0.01
RATE = 0.003  # of learning: losses fall
UNITS = {"float32": 32, "float64": 32, "bfloat16": 1}  # of the first loss


def measure(case, dtype, steps):
    """The losses of `steps` steps: with PyTorch's layers, with bnext's, and of the controls."""
    precise = dtype == "float64"
    runs = {layers: _losses(case, layers, steps, precise) for layers in ("torch", "bnext")}
    controls = [_losses(case, "torch", steps, precise, seed) for seed in range(CONTROLS)]
    return {
        "network": case.network,
        "shape": list(case.shape),
        "device": case.device,
        "channels_last": case.channels_last,
        "dtype": dtype,
        **runs,
        "controls": controls,
    }


def differences(found, losses):
    """By how much losses differ from those of PyTorch's layers, relatively, step by step."""
    return [abs(a - b) / abs(b) for a, b in zip(losses, found["torch"], strict=True)]


def limits(found):
    """What is allowed, step by step; infinite where nothing is compared."""
    eps = torch.finfo(getattr(torch, found["dtype"])).eps
    far, allowed = 0.0, []
    controls = [differences(found, losses) for losses in found["controls"]]
    for of_step in zip(*controls, strict=True):
        far = max(far, *of_step)
        allowed.append(
            max(FACTOR * far, UNITS[found["dtype"]] * eps) if far <= PARTED else math.inf
        )
    return [UNITS[found["dtype"]] * eps, *allowed[1:]]


def agree(found):
    """Whether every loss is within its limit."""
    ours = differences(found, found["bnext"])
    return all(a <= b for a, b in zip(ours, limits(found), strict=True))


def _losses(case, layers, steps, precise, control=None):
    training = Training(case, layers, RATE, precise)
    if control is not None:
        _disturb(training.network, control)
    return [float(training.step()) for _ in range(steps)]


def _disturb(network, seed):
    """Round every output of a layer once more."""
    generator = torch.Generator().manual_seed(seed)

    def rounded(layer, inputs, y):
        noise = 2 * torch.rand(y.shape, generator=generator, dtype=torch.float64) - 1
        unit = torch.finfo(y.dtype).eps * float(y.detach().abs().max())
        return (y.double() + unit * noise.to(y.device)).to(y.dtype)

    for layer in normalizations(network):
        layer.register_forward_hook(rounded)
