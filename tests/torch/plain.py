"""Plain tensors, which kernels read by DLPack's table of C functions, and tensors that are not."""

import pytest

from bnext import _core

from .support import Transparent, torch


def arguments(shape, dtype):
    """x, weight, bias, running mean and variance, and a counter."""
    param = torch.float64 if dtype == torch.float64 else torch.float32
    x = torch.randn(shape).to(dtype)
    vectors = [torch.randn(shape[1]).to(param) for _ in range(3)]
    return x, *vectors, torch.rand(shape[1]).to(param), torch.tensor(5)


def forward(x, w=None, b=None, mean=None, var=None, momentum=0.0, counter=None, eps=1e-5):
    return _core.forward(
        x=x, weight=w, bias=b, running_mean=mean, running_var=var, momentum=momentum,
        num_batches_tracked=counter, eps=eps, channel_axis=1, out=None, plain=True,
    )  # fmt: skip


def by_running(function, x, mean, var, w=None, b=None, **out):
    return function(
        x=x, running_mean=mean, running_var=var, weight=w, bias=b, eps=1e-5, channel_axis=1,
        plain=True, **out,
    )  # fmt: skip


def backward(dy, x, saved, weight=None):
    return _core.backward(dy=dy, x=x, saved=saved, weight=weight, out=None, plain=True)


def backward_constant(dy, saved):
    return _core.backward_constant(dy=dy, saved=saved, weight=None, out=None, plain=True)


def unusual(usual, *more):
    """The arguments with one that is not plain in place of another, by what is the matter with it.

    `usual` has x of shape (4, 6, 3, 5) and its vectors by name, `more` has further ones: a text,
    a name and a tensor.
    """
    x, w, b, mean, counter = (
        usual[name] for name in ("x", "weight", "bias", "running_mean", "num_batches_tracked")
    )
    columns = torch.rand(6, 2)[:, 0]
    for text, name, wrong in (
        ("transposed", "x", x.transpose(2, 3)),
        ("every other", "x", torch.randn(4, 12, 3, 5)[:, ::2]),
        ("expanded", "x", torch.randn(4, 6, 1, 1).expand(4, 6, 3, 5)),
        ("integers", "x", torch.ones(4, 6, 3, 5, dtype=torch.int32)),
        ("sparse", "x", x.to_sparse()),
        ("subclass", "x", x.as_subclass(Transparent)),
        ("one axis", "x", torch.randn(6)),
        ("nine axes", "x", torch.randn(4, 6, *[1] * 7)),
        ("one value per channel", "x", torch.randn(1, 6)),
        ("negated", "x", torch._neg_view(x)),
        ("zeros without memory", "x", torch._efficientzerotensor(x.shape)),
        ("negated weight", "weight", torch._neg_view(w)),
        ("wide weight", "weight", w.double()),
        ("short weight", "weight", w[:5]),
        ("weight of steps", "weight", columns),
        ("weight of two axes", "weight", w[None]),
        ("bias of another dtype", "bias", b.half()),
        ("negated mean", "running_mean", torch._neg_view(mean)),
        ("mean of another dtype", "running_mean", mean.double()),
        ("no mean beside a variance", "running_mean", None),
        ("variance of steps", "running_var", columns),
        ("long variance", "running_var", torch.rand(7)),
        ("counter of 32 bits", "num_batches_tracked", counter.int()),
        ("counter with an axis", "num_batches_tracked", counter[None]),
        *more,
    ):
        yield pytest.param(tuple((usual | {name: wrong}).values()), id=text)
