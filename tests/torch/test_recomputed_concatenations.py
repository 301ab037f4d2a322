"""recompute=True: concatenations of outputs are made again of their parts, with the same bits."""

import pytest

import bnext

from .support import torch

from bnext.torch import recomputation  # isort: skip - of which there is nothing without PyTorch

nn, functional = torch.nn, torch.nn.functional
layers, recomputing = bnext.torch, bnext.torch.recomputing
SHAPE = (3, 4, 6, 5)


class Joining(nn.Module):
    """Two layers and a convolution, whose outputs another convolution takes side by side."""

    def __init__(self, join, channels=12, **options):
        super().__init__()
        torch.manual_seed(3)
        self.first = layers.BatchNorm2d(4, activation="relu", recompute=True)
        self.second = layers.BatchNorm2d(4, activation="silu", recompute=True)
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.last = nn.Conv2d(channels, 2, 3)
        self.join = join
        self.to(**options)

    def forward(self, x):
        x = x * 2
        z = self.conv(x)
        return self.last(self.join(self.first(x), self.second(z), z))


def gradients(model, x):
    leaf = x.clone().requires_grad_()
    loss = model(leaf).square().sum()
    return loss, *torch.autograd.grad(
        loss, [leaf, *model.parameters()], allow_unused=True, materialize_grads=True
    )


def kept_in(model, x):
    """Tensors that are kept, as they were, and gradients."""
    kept, plain = [], recomputation.Kept
    with pytest.MonkeyPatch.context() as patch, recomputing():
        patch.setattr(recomputation, "Kept", lambda t: kept.append(t.clone()) or plain(t))
        return kept, gradients(model, x)


def assert_same_bits(actual, expected):
    assert len(actual) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def cat(*tensors, dim=1):
    return torch.cat(tensors, dim)


JOINS = {
    "all of layers": (lambda a, b, c: cat(a, b), 8),
    "another first": (lambda a, b, c: cat(c + 1, a), 8),
    "another last": (lambda a, b, c: cat(a, b, c + 1), 12),
    "two others between": (lambda a, b, c: cat(a, c + 1, c.detach(), b), 16),
    "one twice": (lambda a, b, c: cat(a, a), 8),
    "from behind": (lambda a, b, c: cat(a, b, c + 1, dim=-3), 12),
    "along rows": (lambda a, b, c: cat(a, b, c + 1, dim=0), 4),
    "along the last": (lambda a, b, c: cat(a, c + 1, dim=-1), 4),
    "an empty one": (lambda a, b, c: cat(c.new_empty(0), a, b), 8),
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", JOINS)
def test_concatenations_are_made_again_with_the_same_bits(name, dtype, layout):
    join, channels = JOINS[name]
    model = Joining(join, channels, dtype=dtype)
    x = torch.randn(SHAPE, dtype=dtype).to(memory_format=layout)
    seen = []
    hook = model.last.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    expected = gradients(model, x)
    hook.remove()
    kept, actual = kept_in(model, x)
    assert_same_bits(actual, expected)
    assert not any(each.shape == seen[0].shape and torch.equal(each, seen[0]) for each in kept)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_concatenations_of_dtypes(dtype):
    """The parts are of two dtypes, the result is of the wider one."""

    def join(a, b, c):
        return cat(a, b, c.to(dtype)).square().sum(1)

    model = Joining(join)
    model.second.to(torch.bfloat16)
    model.conv.register_forward_hook(lambda _, given, z: z.to(torch.bfloat16))
    model.last = nn.Identity()
    x = torch.randn(SHAPE)
    expected = gradients(model, x)
    kept, actual = kept_in(model, x)
    assert_same_bits(actual, expected)
    assert not any(each.shape[1] in (8, 12) for each in kept if each.dim() == 4)


def written_before(a, b, c):
    a.detach().mul_(2)
    return cat(a, c)


def written_behind(a, b, c):
    joined = cat(a, b)
    joined.detach().mul_(2)
    return joined


def written_with_a_gradient(a, b, c):
    return cat(a, b).mul_(2)


def written_and_gone(a, b, c):
    b.detach().mul_(2)
    joined = cat(a.sigmoid(), b)
    del b
    return joined


KEPT = {
    "an output that has changed": (written_before, 8),
    "an output that has changed and is gone": (written_and_gone, 8),
    "it has changed": (written_behind, 8),
    "it has changed, with gradients": (written_with_a_gradient, 8),
    "others at two places": (lambda a, b, c: cat(c, a, c), 12),
    "little of it is made again": (lambda a, b, c: cat(a, *[c] * 4), 20),
    "nothing is made again": (lambda a, b, c: cat(c, c), 8),
    "activated in between": (lambda a, b, c: cat(a.sigmoid(), c), 8),
}


@pytest.mark.parametrize("name", KEPT)
def test_concatenations_that_are_kept(name):
    join, channels = KEPT[name]
    model = Joining(join, channels)
    x = torch.randn(SHAPE)
    seen = []
    hook = model.last.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    expected = gradients(model, x)
    hook.remove()
    kept, actual = kept_in(model, x)
    assert_same_bits(actual, expected)
    assert any(each.shape == seen[0].shape and torch.equal(each, seen[0]) for each in kept)


def test_concatenations_are_viewed():
    """A view is kept as a place in what is made again."""

    def join(a, b, c):
        return cat(a, b, c)[:, 2:10].transpose(2, 3).square().sum(1)

    model = Joining(join)
    model.last = nn.Identity()
    x = torch.randn(SHAPE)
    expected = gradients(model, x)
    kept, actual = kept_in(model, x)
    assert_same_bits(actual, expected)
    assert not any(each.shape[1] in (8, 12) for each in kept if each.dim() == 4)


def test_concatenations_that_layers_normalize():
    """The input of a layer is a concatenation, and the output is made again from it."""
    model = Joining(lambda a, b, c: cat(a, b, c), 12)
    model.last = nn.Sequential(
        layers.BatchNorm2d(12, activation="relu", recompute=True), nn.Conv2d(12, 2, 1)
    )
    x = torch.randn(SHAPE)
    expected = gradients(model, x)
    kept, actual = kept_in(model, x)
    assert_same_bits(actual, expected)
    assert not any(each.shape[1] == 12 for each in kept if each.dim() == 4 and len(each) == 3)


def test_concatenations_of_concatenations_are_not_followed():
    """A chain of layers and concatenations takes each layer once or twice, and no more."""
    torch.manual_seed(4)
    norms = [layers.BatchNorm2d(4 + 4 * i, recompute=True) for i in range(5)]
    convs = [nn.Conv2d(4 + 4 * i, 4, 1) for i in range(5)]
    x = torch.randn(SHAPE, requires_grad=True)

    def run():
        y = x * 1
        for norm, conv in zip(norms, convs, strict=True):
            y = norm(y)
            y = cat(y, conv(y))
        return torch.autograd.grad(y.square().sum(), [x, *[conv.weight for conv in convs]])

    expected = run()
    made = []
    again = recomputation.spine.recompute
    with pytest.MonkeyPatch.context() as patch, recomputing():
        patch.setattr(
            recomputation.spine, "recompute", lambda *given: made.append(1) or again(*given)
        )
        actual = run()
    assert_same_bits(actual, expected)
    assert len(made) <= 4 * len(norms)


def test_concatenations_know_nothing_of_earlier_passes():
    model = Joining(lambda a, b, c: cat(a, b), 8)
    with recomputing():
        y = model(torch.randn(SHAPE))
        assert len(recomputation._STATE.outputs) == 2
    assert not recomputation._STATE.outputs
    y.sum().backward()
    with recomputing():
        model(torch.randn(SHAPE))
        assert not recomputation._STATE.outputs, "graphs that are gone are remembered"


def test_concatenations_in_gradients_of_gradients():
    model = Joining(lambda a, b, c: cat(a, b, c), 12, dtype=torch.float64)
    x = torch.randn(SHAPE, dtype=torch.float64)

    def twice():
        leaf = x.clone().requires_grad_()
        (dx,) = torch.autograd.grad(model(leaf).square().sum(), leaf, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), [leaf, *model.parameters()])

    expected = twice()
    with recomputing():
        actual = twice()
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_concatenations_with_optimizers_between():
    model = Joining(lambda a, b, c: cat(a, b, c), 12)
    x = torch.randn(SHAPE)
    (expected,) = torch.autograd.grad(model(x).square().sum(), model.last.weight)
    with recomputing():
        loss = model(x).square().sum()
    with torch.no_grad():
        for parameter in (model.first.weight, model.second.bias, model.conv.weight):
            parameter.fill_(3)
    (actual,) = torch.autograd.grad(loss, model.last.weight)
    assert torch.equal(actual, expected)
