"""Tensors that are more than their memory: lazy, empty, wrapped. Results are right, or an error."""

import numpy as np
import pytest

import bnext

from ..compare import assert_same_bits
from .support import assert_close, by_arrays, torch

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")

SHAPE = (9, 4, 3, 5)


class Wrapper(torch.Tensor):
    """A tensor around another, with operations of its own and no memory."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), named=None):
        def inner_of(value):
            return value.inner if isinstance(value, Wrapper) else value

        named = {key: inner_of(value) for key, value in (named or {}).items()}
        return function(*map(inner_of, arguments), **named)


def negated(x):
    """The same values, of which memory has the negative ones."""
    v = torch._neg_view(-x)
    assert v.is_neg()
    return v


def of_conjugate(x):
    """The same, with steps between the elements: half of a complex tensor's memory."""
    v = torch.complex(torch.zeros_like(x), -x).conj().imag
    assert v.is_neg()
    return v


LAZY = {"negated": negated, "of a conjugate": of_conjugate}


def freed(x):
    y = x.clone()
    y.untyped_storage().resize_(0)
    return y


def fake(x):
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode().from_tensor(x)


WITHOUT_VALUES = {
    "wrapper": Wrapper,
    "masked": lambda x: torch.masked.masked_tensor(x, x > 0),
    "fake": fake,
    "functional": torch._to_functional_tensor,
    "zeros": lambda x: torch._efficientzerotensor(x.shape),
    "freed": freed,
}


@pytest.fixture(params=LAZY)
def lazy(request):
    return LAZY[request.param]


def data():
    x, dy = torch.randn(2, *SHAPE)
    weight, bias, mean, var = torch.rand(4, SHAPE[1]) + 0.5
    return x, dy, weight, bias, mean, var


def test_lazy_tensors_in_functions_of_arrays(lazy):
    given = data()
    results = []
    for kind in (lambda x: x, lazy):
        x, dy, weight, bias, mean, var = map(kind, given)
        y, saved = bnext.batch_norm_forward(x, weight, bias)
        gradients = bnext.batch_norm_backward(dy, x, saved, weight)
        moments = bnext.moments(x)
        results.append([
            y, *gradients, bnext.normalize(x, mean, var, weight, bias),
            torch.from_numpy(moments.mean.copy()), torch.from_numpy(moments.m2.copy()),
        ])  # fmt: skip
    for actual, expected in zip(*results, strict=True):
        assert not actual.is_neg()
        assert_same_bits(actual.numpy(), expected.numpy())


def test_lazy_tensors_in_layers_of_arrays(lazy):
    x, dy, weight, _, mean, var = data()
    results = []
    for kind in (lambda x: x, lazy):
        bn = bnext.BatchNorm2d(SHAPE[1])
        bn.load_state_dict({"weight": kind(weight), "running_mean": kind(mean)}, strict=False)
        results.append([bn(kind(x)), bn.backward(kind(dy)), *map(torch.from_numpy, (
            bn.running_mean, bn.running_var, bn.weight_grad, bn.weight
        ))])  # fmt: skip
        group = bnext.sync.ThreadGroup(1)
        results[-1] += group.run(
            lambda rank, x, group=group: bnext.batch_norm_forward(x, group=group)[0], [kind(x)]
        )
    for actual, expected in zip(*results, strict=True):
        assert_same_bits(actual.numpy(), expected.numpy())
    assert var.min() > 0


def test_lazy_tensors_are_not_written(lazy):
    x, *_, mean, var = data()
    before = x.clone()
    out = lazy(x)
    with pytest.raises(TypeError, match=r"^out: expected a tensor that can be written"):
        bnext.batch_norm_forward(x, out=out)
    assert torch.equal(out, before)
    bn = bnext.BatchNorm2d(SHAPE[1]).to(x)
    bn.running_var = lazy(var)
    with pytest.raises(TypeError, match=r"^running_var: expected a tensor that can be written"):
        bn(x)
    assert torch.equal(bn.running_var, var)
    assert torch.equal(bn.running_mean, torch.zeros_like(mean))


@pytest.mark.parametrize("which", ["x", "weight", "bias", "mean", "var"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("by_table", [True, False], ids=["table", "arrays"])
def test_lazy_tensors_in_functional(which, training, by_table, lazy, monkeypatch):
    if not by_table:
        by_arrays(monkeypatch)
    x, dy, weight, bias, mean, var = data()
    results = []
    for function in (torch.nn.functional.batch_norm, bnext.torch.functional.batch_norm):
        arguments = {"x": x.clone(), "weight": weight, "bias": bias}
        buffers = {"mean": mean.clone(), "var": var.clone()}
        for group in (arguments, buffers):
            if which in group:
                group[which] = lazy(group[which])
        leaves = [a.detach().requires_grad_() for a in arguments.values()]
        assert not leaves or which in buffers or any(a.is_neg() for a in leaves)
        y = function(leaves[0], *buffers.values(), *leaves[1:], training, 0.3)
        results.append([y, *torch.autograd.grad(y, leaves, dy), *buffers.values()])
    for expected, actual in zip(*results, strict=True):
        assert_close(actual.resolve_neg(), expected.resolve_neg(), which, 10.0)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_lazy_tensors_in_torch_layers(training, lazy):
    x, dy, *_ = data()
    results = []
    for library in (torch.nn, bnext.torch):
        layer = library.BatchNorm2d(SHAPE[1]).train(training)
        leaf = lazy(x).requires_grad_()
        y = layer(leaf)
        results.append([y, *torch.autograd.grad(y, (leaf, *layer.parameters()), lazy(dy))])
        with torch.no_grad():
            results[-1].append(layer(lazy(x)))
        results[-1].append(layer.running_mean)
    for expected, actual in zip(*results, strict=True):
        assert_close(actual, expected, "layer", 10.0)


@pytest.mark.parametrize("name", ["x", "weight", "out", "dy"])
@pytest.mark.parametrize("kind", WITHOUT_VALUES)
@pytest.mark.filterwarnings("ignore")
def test_tensors_without_values_are_refused(kind, name):
    tensors = {name: torch.randn(SHAPE) for name in ("x", "dy", "out")}
    tensors["weight"] = torch.ones(SHAPE[1])
    _, saved = bnext.batch_norm_forward(tensors["x"])
    tensors[name] = WITHOUT_VALUES[kind](tensors[name])
    x, dy, weight, out = (tensors[key] for key in ("x", "dy", "weight", "out"))
    with pytest.raises(TypeError, match=f"^{name}: expected a.* whose memory holds its values"):
        bnext.batch_norm_backward(dy, x, saved, weight, out=out)


@pytest.mark.parametrize("kind", ["functional", "zeros", "freed"])
def test_parameters_without_values_beside_numpy(kind):
    weight = WITHOUT_VALUES[kind](torch.ones(3))
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    with pytest.raises(TypeError, match=r"^weight: expected an array (that|whose)"):
        bnext.batch_norm_forward(x, weight)
    with pytest.raises(TypeError, match=r"^weight: expected an array that NumPy can read"):
        bnext.batch_norm_forward(x, negated(torch.ones(3)))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("kind", ["functional", "zeros"])
def test_layers_do_with_them_what_pytorch_does(kind, training):
    x = torch.randn(SHAPE)
    results = []
    for library in (torch.nn, bnext.torch):
        layer = library.BatchNorm2d(SHAPE[1]).train(training)
        with torch.no_grad():
            results.append(layer(WITHOUT_VALUES[kind](x)))
    expected, actual = (torch._from_functional_tensor(y) if torch._is_functional_tensor(y) else y
                        for y in results)  # fmt: skip
    assert_close(actual, expected, kind, 10.0)


def test_gradients_of_zeros_without_memory():
    """As autograd has them where nothing comes back."""
    for training in (True, False):
        layer = bnext.torch.BatchNorm2d(SHAPE[1]).train(training)
        for of in ([layer.weight], []):
            x = torch.randn(SHAPE, requires_grad=True)
            layer.requires_grad_(bool(of))
            y = layer(x)
            zeros = torch._efficientzerotensor(SHAPE)
            for gradient in torch.autograd.grad(y, [x, *of], zeros):
                assert torch.equal(gradient, torch.zeros_like(gradient))


def test_transformed_tensors_in_functions_of_arrays():
    """vmap, grad, jvp: an error, since bnext's functions know nothing of them."""
    x = torch.randn(2, 4, 3)

    def call(x):
        return bnext.batch_norm_forward(x)[0].sum()

    for transform in (torch.vmap, torch.func.grad):
        with pytest.raises(TypeError, match=r"^x: expected a"):
            transform(call)(x if transform is torch.vmap else x[0])
    with pytest.raises(TypeError, match=r"^x: expected a"):
        torch.func.jvp(call, (x[0],), (x[0],))
