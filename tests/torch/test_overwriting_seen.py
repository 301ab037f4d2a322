"""Fused evaluation leaves outputs of convolutions alone where hooks, modes or objects hold them."""

import pytest

import bnext

from .architectures import IMAGE
from .support import torch
from .test_overwriting import Block, evaluating

nn, functional = torch.nn, torch.nn.functional


def hook_of_the_source(model, keep):
    model.conv.register_forward_hook(lambda module, inputs, y: keep(y))


def hook_before_the_layer(model, keep):
    model.bn.register_forward_pre_hook(lambda module, inputs: keep(inputs[0]))


def forward_of_the_object(model, keep):
    run = model.conv.forward
    model.conv.forward = lambda x: keep(run(x))


def function_of_the_object(model, keep):
    run = model.conv._conv_forward
    model.conv._conv_forward = lambda *arguments: keep(run(*arguments))


class Remembering(nn.Conv2d):
    def forward(self, x):
        return self.__dict__["keep"](super().forward(x))


def class_of_the_source(model, keep):
    model.conv.__class__ = Remembering
    model.conv.__dict__["keep"] = keep


class Keeping(torch.overrides.TorchFunctionMode):
    def __init__(self, keep):
        super().__init__()
        self.keep = keep

    def __torch_function__(self, function, types, args=(), kwargs=None):
        y = function(*args, **(kwargs or {}))
        return self.keep(y) if function is functional.conv2d else y


class Watching(torch.utils._python_dispatch.TorchDispatchMode):
    def __init__(self, keep):
        super().__init__()
        self.keep = keep

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        y = function(*args, **(kwargs or {}))
        return self.keep(y) if "conv" in str(function) else y


OBSERVERS = {
    each.__name__: each
    for each in (
        hook_of_the_source, hook_before_the_layer, forward_of_the_object, function_of_the_object,
        class_of_the_source,
    )
}  # fmt: skip


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("what", ["object", "memory"])
@pytest.mark.parametrize("observer", OBSERVERS)
def test_overwriting_leaves_what_is_seen(observer, what, when):
    """What holds the output of the convolution, or an alias of it, finds what it was."""
    torch.manual_seed(2)
    plain = Block().eval()
    x = torch.randn(IMAGE)
    seen = []

    def keep(y):
        seen.append(y if what == "object" else y.detach())
        return y

    if when == "before":
        OBSERVERS[observer](plain, keep)
        model = bnext.torch.convert(plain, fuse=True)
    else:
        model = bnext.torch.convert(plain, fuse=True)
        OBSERVERS[observer](model, keep)
    with torch.no_grad():
        seen.clear()
        y = model(x)
        (kept,) = seen
        conv = functional.conv2d(x, model.conv.weight, model.conv.bias)
    assert torch.equal(kept, conv)
    torch.testing.assert_close(y, (conv / (1 + 1e-5) ** 0.5).relu())


@pytest.mark.parametrize("mode", [Keeping, Watching])
@pytest.mark.parametrize("what", ["object", "memory"])
def test_overwriting_under_modes(mode, what):
    model = evaluating(Block())
    x, seen = torch.randn(IMAGE), []

    def keep(y):
        seen.append(y if what == "object" else y.view(y.shape))
        return y

    with torch.no_grad():
        with mode(keep):
            model(x)
        (kept,) = seen
        conv = functional.conv2d(x, model.conv.weight, model.conv.bias)
    assert torch.equal(kept, conv)


@pytest.mark.parametrize("what", ["object", "memory"])
def test_overwriting_where_functions_are_exchanged(monkeypatch, what):
    """Tools exchange functions of `torch.nn.functional`, to count or to record."""
    model, x, seen = evaluating(Block()), torch.randn(IMAGE), []
    run = functional.conv2d

    def conv2d(*arguments):
        y = run(*arguments)
        seen.append(y if what == "object" else y.detach())
        return y

    monkeypatch.setattr(functional, "conv2d", conv2d)
    with torch.no_grad():
        model(x)
        assert torch.equal(seen[0], run(x, model.conv.weight, model.conv.bias))
