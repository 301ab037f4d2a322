"""The same operations as bnext and PyTorch offer them, on the same CUDA tensors.

Each `*_calls` function maps an operation to a call of one set of tensors. With `out`, bnext writes
to the set's own memory; PyTorch's operators allocate, and whoever captures them keeps the results,
so that each has memory of its own as well.
"""

import math
from dataclasses import dataclass

import numpy as np

import bnext
from benchmarks.peers import operators
from bnext.bench.cases import EPS
from bnext.bench.libraries import import_torch

DEVICE = "cuda"
BACKENDS = {0: "PyTorch's own", 1: "cuDNN"}  # of aten._batch_norm_impl_index


@dataclass
class Set:
    """One set of tensors of a case."""

    x: object
    dy: object
    out: object
    weight: object
    bias: object
    mean: object
    var: object


def dtype_of(name):
    return getattr(import_torch(), name)


def seed_of(case, run):
    """Of the random numbers of a case: other ones for each case and each run."""
    return np.random.SeedSequence([run, *case.shape, case.channels_last]).generate_state(1)[0]


def draw(case, number, run):
    """`number` sets of normal values on the device, with a place and a width by channel."""
    torch = import_torch()
    device, dtype = torch.device(DEVICE), dtype_of(case.dtype)
    generator = torch.Generator(device).manual_seed(int(seed_of(case, run)))
    shape, channels = case.shape, case.shape[1]
    column = (channels,) + (1,) * (len(shape) - 2)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    dense = {4: torch.channels_last, 5: torch.channels_last_3d}
    memory_format = dense[len(shape)] if case.channels_last else torch.contiguous_format

    def vector(low, high):
        values = torch.rand(channels, generator=generator, device=device, dtype=wide)
        return values * (high - low) + low

    def normal(place, width):
        values = torch.empty(shape, device=device, dtype=wide, memory_format=memory_format)
        values.normal_(generator=generator).mul_(width).add_(place)
        return values.to(dtype, memory_format=torch.preserve_format)

    def one():
        mean, std = vector(-2, 2), vector(0.5, 2)
        return Set(
            x=normal(mean.reshape(column), std.reshape(column)),
            dy=normal(torch.tensor(0.25, device=device), torch.tensor(1.0, device=device)),
            out=torch.empty(shape, device=device, dtype=dtype, memory_format=memory_format),
            weight=vector(0.5, 1.5),
            bias=vector(-1, 1),
            mean=mean,
            var=std * std,
        )

    return [one() for _ in range(number)]


def bnext_calls(sets, out=True):
    """Prepare the calls of this package."""

    def target(s):
        return s.out if out else None

    def forward(s):
        return bnext.batch_norm_forward(s.x, s.weight, s.bias, eps=EPS, out=target(s))

    def backward(s, saved):
        return bnext.batch_norm_backward(s.dy, s.x, saved, s.weight, out=target(s))

    def inference(s):
        return bnext.normalize(s.x, s.mean, s.var, s.weight, s.bias, eps=EPS, out=target(s))

    return _calls(sets, forward, backward, inference)


def _calls(sets, forward, backward, inference):
    """Calls of one set; `backward` is given what `forward` has saved of the set."""
    saved = {id(s): forward(s)[1:] for s in sets}
    return {
        "forward": forward,
        "backward": lambda s: backward(s, *saved[id(s)]),
        "inference": inference,
    }


def torch_calls(sets, cudnn):
    """PyTorch's eager operators, without autograd, and whose kernels they choose."""
    aten = import_torch().ops.aten

    def forward(s):
        return aten._batch_norm_impl_index(s.x, s.weight, s.bias, None, None, True, 0.1, EPS, cudnn)

    def backward(s, mean, rstd, reserve, chosen):
        return aten._batch_norm_impl_index_backward(
            *(chosen, s.x, s.dy, s.weight, None, None, mean, rstd, True, EPS),
            *([True, True, True], reserve),
        )

    def inference(s):
        return aten._batch_norm_impl_index(
            *(s.x, s.weight, s.bias, s.mean, s.var, False, 0.1, EPS, cudnn)
        )[0]

    choice = forward(sets[0])[4]
    return _calls(sets, forward, backward, inference), BACKENDS.get(choice, str(choice))


def cudnn_calls(sets):
    """cuDNN where PyTorch would not choose it."""
    aten = import_torch().ops.aten

    def forward(s):
        return aten.cudnn_batch_norm(s.x, s.weight, s.bias, None, None, True, 0.1, EPS)

    def backward(s, mean, rstd, reserve):
        return aten.cudnn_batch_norm_backward(
            s.x, s.dy, s.weight, None, None, mean, rstd, EPS, reserve
        )

    def inference(s):
        return aten.cudnn_batch_norm(s.x, s.weight, s.bias, s.mean, s.var, False, 0.1, EPS)[0]

    return _calls(sets, forward, backward, inference)


def compile_calls(sets):
    """What torch.compile makes of the operators, with static shapes; compiled here, not timed."""
    torch = import_torch()
    torch.compiler.reset()
    forward, backward, inference = (torch.compile(f, dynamic=False) for f in operators(torch))
    return _calls(
        sets,
        lambda s: forward(s.x, s.weight, s.bias),
        lambda s, *saved: backward(s.dy, s.x, s.weight, *saved),
        lambda s: inference(s.x, s.mean, s.var, s.weight, s.bias),
    )


def exact(s):
    """The results of each operation in float64, by name."""
    torch = import_torch()
    x, dy = s.x.double(), s.dy.double()
    axes = tuple(i for i in range(x.ndim) if i != 1)
    column = (1, -1) + (1,) * (x.ndim - 2)
    n = math.prod(x.shape) // x.shape[1]
    weight, bias, mean, var = (
        v.double().reshape(column) for v in (s.weight, s.bias, s.mean, s.var)
    )
    inference = (x - mean) * torch.rsqrt(var + EPS) * weight + bias
    x -= x.mean(axes, keepdim=True)
    rstd = torch.rsqrt(x.square().mean(axes, keepdim=True) + EPS)
    x *= rstd
    dbias, dweight = dy.sum(axes, keepdim=True), (dy * x).sum(axes, keepdim=True)
    dx = (dy - dbias / n - x * (dweight / n)) * (weight * rstd)
    return {
        "forward": {"y": x * weight + bias},
        "backward": {"dx": dx, "dweight": dweight.reshape(-1), "dbias": dbias.reshape(-1)},
        "inference": {"y": inference},
    }


def errors(operation, result, expected):
    """The norm of the difference from float64 over the norm, of each result."""
    if operation == "inference":
        result = (result,)
    names = {"forward": ("y",), "backward": ("dx", "dweight", "dbias"), "inference": ("y",)}
    found = {}
    for name, value in zip(names[operation], result, strict=False):
        wanted = expected[operation][name]
        found[name] = float((value.double() - wanted).norm() / wanted.norm())
    return found
