"""Masked batch normalization beside the call without a mask, and PyTorch's composition.

    python -m benchmarks.masks [--threads N] [--seconds S] [--check]

(64, 256, 512) of float32, planar and channels last, with half of the positions valid: padded
sequences, scattered positions, weights. PyTorch's composition is what one writes without such a
layer: sums of products with the mask, then arithmetic and `where`. Times are medians of turns in
milliseconds. With --check it exits with 1 where a padded forward pass takes more than 1.15 of the
call without a mask, or PyTorch's composition less than 4 times as long as the masked one; with 2 if
it cannot compare.
"""

import sys

import numpy as np

import bnext
from benchmarks.kit.command import checked, command, ended, seconds, threads
from bnext.bench import report
from bnext.bench.environment import environment
from bnext.bench.libraries import import_torch
from bnext.bench.measure import threads_set_to
from bnext.bench.timing import alternate
from bnext.command_line import USAGE, CommandError

SHAPE = (64, 256, 512)  # examples, channels, positions of each
EPS = 1e-5
MOST_OF_PLAIN, LEAST_OF_TORCH = 1.15, 4.0


def arguments_by_name(examples, extent):
    """What says which positions count: half of them."""
    rng = np.random.default_rng(1)
    lengths = rng.permutation(np.linspace(0, extent, examples).astype(np.int64))
    return {
        "lengths": {"lengths": lengths},
        "padded": {"mask": np.arange(extent) < lengths[:, None]},
        "scattered": {"mask": rng.random((examples, extent)) < 0.5},
        "weights": {
            "sample_weight": rng.random((examples, extent)).astype(np.float32)
            * (rng.random((examples, extent)) < 0.5)
        },
    }


def composition(torch, x, weight, bias, over, dims, shape):
    """What PyTorch's users write: the mask is of the dtype of x, and broadcast."""

    def forward():
        n = over.sum()
        mean = (x * over).sum(dims, keepdim=True) / n
        var = (((x - mean) * over) ** 2).sum(dims, keepdim=True) / n
        y = (x - mean) * torch.rsqrt(var + EPS) * weight.view(shape) + bias.view(shape)
        return y * over

    return forward


def measured(torch, axis, seconds):
    """The timings of a layout: for each argument, the timings of each call by name."""
    n, channels, extent = SHAPE
    shape = SHAPE if axis == 1 else (n, extent, channels)
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, *shape), np.float32)
    weight, bias = rng.standard_normal((2, channels), np.float32)
    y, dx = np.empty_like(x), np.empty_like(x)
    plain = {"channel_axis": axis, "out": y}
    _, saved = bnext.batch_norm_forward(x, weight, bias, channel_axis=axis)
    tensors = None
    if torch is not None:
        tensors = [torch.from_numpy(each) for each in (x, weight, bias)]
    for name, given in arguments_by_name(n, extent).items():
        _, masked = bnext.batch_norm_forward(x, weight, bias, channel_axis=axis, **given)
        calls = {
            "plain": lambda: bnext.batch_norm_forward(x, weight, bias, **plain),
            "masked": lambda given=given: bnext.batch_norm_forward(
                x, weight, bias, **plain, **given
            ),
            "backward": lambda: bnext.batch_norm_backward(dy, x, saved, weight, out=dx),
            "masked backward": lambda masked=masked: bnext.batch_norm_backward(
                dy, x, masked, weight, out=dx
            ),
        }
        if tensors is not None and "mask" in given:
            over = torch.from_numpy(np.expand_dims(given["mask"], axis % 3)).float()
            dims, per_channel = ((0, 2), (1, -1, 1)) if axis == 1 else ((0, 1), (1, 1, -1))
            calls["PyTorch"] = composition(torch, *tensors, over, dims, per_channel)
        yield name, alternate(calls, seconds)


@command("benchmarks.masks", __doc__, threads(), seconds(3.0, "row"), checked())
def main(options):
    torch = import_torch()
    if torch is None and options.check:
        raise CommandError("needs PyTorch to compare with", USAGE)
    broken = []
    print(report.introduction(environment(options.threads)))
    print(f"{'':24} plain ms  masked  of plain  backward  masked  of plain  PyTorch  x masked")
    with threads_set_to(options.threads):
        for layout, axis in (("planar", 1), ("channels last", -1)):
            for name, timing in measured(torch, axis, options.seconds):
                plain, masked, back, masked_back = (
                    timing[each].median * 1e3
                    for each in ("plain", "masked", "backward", "masked backward")
                )
                row = (
                    f"{layout + ', ' + name:24} {plain:8.2f} {masked:7.2f} {masked / plain:9.2f} "
                    f"{back:9.2f} {masked_back:7.2f} {masked_back / back:9.2f}"
                )
                if "PyTorch" in timing:
                    theirs = timing["PyTorch"].median * 1e3
                    row += f" {theirs:8.2f} {theirs / masked:9.2f}"
                    if name == "padded" and theirs < LEAST_OF_TORCH * masked:
                        broken.append(f"{layout}: PyTorch's {theirs / masked:.2f} of masked")
                if name == "padded" and masked > MOST_OF_PLAIN * plain:
                    broken.append(f"{layout}: masked {masked / plain:.2f} of plain")
                print(row, flush=True)
    return ended(options, broken)


if __name__ == "__main__":
    sys.exit(main())
