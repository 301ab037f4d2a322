"""Gradients beside finite differences, gradients of gradients, and of many outputs at once."""

import pytest

import bnext

from .support import LIBRARIES, assert_close, layers, torch

THEIRS, OURS = torch.nn.functional.batch_norm, bnext.torch.functional.batch_norm
SHAPES = [(5, 3), (3, 2, 4), (2, 2, 3, 2)]
STATISTICS = ("batch", "running")


def double(*shape):
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def function_of(statistics, channels, function=OURS):
    """y of x, weight and bias, which moves nothing."""
    mean = torch.randn(channels, dtype=torch.float64)
    var = torch.rand(channels, dtype=torch.float64) + 0.5

    def call(x, weight=None, bias=None):
        if statistics == "batch":
            return function(x, None, None, weight, bias, training=True)
        return function(x, mean, var, weight, bias)

    return call


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("given", range(3), ids=["x", "x-weight", "x-weight-bias"])
@pytest.mark.parametrize("statistics", STATISTICS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradcheck(shape, statistics, given, memory_format, kernel_calls):
    if memory_format is torch.channels_last and len(shape) != 4:
        return
    call = function_of(statistics, shape[1])
    x = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=memory_format)
    inputs = (x.requires_grad_(), *(double(shape[1]) for _ in range(given)))
    assert torch.autograd.gradcheck(call, inputs)
    assert sum(kernel_calls.values()) > 0
    assert torch.autograd.gradgradcheck(call, inputs)


@pytest.mark.parametrize("statistics", STATISTICS)
@pytest.mark.parametrize("wanted", ["weight", "bias", "both"])
def test_gradcheck_of_parameters_alone(wanted, statistics):
    call = function_of(statistics, 3)
    x, weight, bias = torch.randn(5, 3, dtype=torch.float64), double(3), double(3)
    weight.requires_grad_(wanted != "bias")
    bias.requires_grad_(wanted != "weight")
    assert torch.autograd.gradcheck(call, (x, weight, bias))
    if wanted != "bias":  # of which y is a linear function, so that its gradient wants none
        assert torch.autograd.gradgradcheck(call, (x, weight, bias))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradient_penalty(dtype, training):
    """As WGAN-GP has it: the norm of a gradient is part of the loss."""
    results = []
    x = torch.randn(8, 5, 4, dtype=dtype)
    for layer in layers("BatchNorm1d", dtype=dtype):
        layer.train(training)
        torch.manual_seed(3)
        model = torch.nn.Sequential(
            torch.nn.Conv1d(5, 5, 1), layer, torch.nn.Tanh(), torch.nn.Conv1d(5, 1, 3)
        ).to(dtype)
        leaf = x.clone().requires_grad_()
        out = model(leaf)
        (gradient,) = torch.autograd.grad(out.sum(), leaf, create_graph=True)
        ((gradient.norm(dim=(1, 2)) - 1).square().mean() + out.mean()).backward()
        results.append([p.grad for p in model.parameters()] + [leaf.grad])
    for expected, actual in zip(*results, strict=True):
        assert_close(actual, expected, "gradient of the penalty", 10.0)


def of_elementary_operations(x, mean, var, weight, bias, training):
    if training:
        mean, var = x.mean(0), x.var(0, correction=0)
    return (x - mean) / (var + 1e-5).sqrt() * weight


@pytest.mark.parametrize("statistics", STATISTICS)
def test_third_derivatives(statistics):
    """Beside PyTorch's elementary operations: its batch_norm holds statistics constant by then."""
    x, weight = double(6, 3), double(3)
    mean, var = torch.randn(3, dtype=torch.float64), torch.rand(3, dtype=torch.float64) + 0.5
    results = []
    for function in (of_elementary_operations, OURS):
        y = function(x, mean.clone(), var.clone(), weight, None, statistics == "batch").sin().sum()
        for _ in range(3):
            (y,) = torch.autograd.grad(y, x, create_graph=True)
            y = y.sin().sum()
        results.append(torch.autograd.grad(y, (x, weight)))
    torch.testing.assert_close(results[1], results[0])


def test_twice_keeps_a_graph_only_if_asked():
    layer = bnext.torch.BatchNorm1d(3)
    x = torch.randn(6, 3, requires_grad=True)
    (dx,) = torch.autograd.grad(layer(x).square().sum(), x)
    assert not dx.requires_grad
    (dx,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    assert dx.requires_grad


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("name", ["hessian", "jacobian", "jvp", "vjp", "hvp", "vhp"])
def test_autograd_functional(name, vectorize, training):
    x, v = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    options = {"vectorize": vectorize} if name in ("hessian", "jacobian") else {"v": v}
    results = []
    for layer in layers("BatchNorm1d", 3, dtype=torch.float64):
        layer.train(training)

        def loss(x, layer=layer):
            y = layer(x).pow(3)
            return y if name in ("jacobian", "jvp", "vjp") else y.sum()

        results.append(getattr(torch.autograd.functional, name)(loss, x, **options))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_gradients_of_many_outputs_at_once(training):
    x, dys = torch.randn(6, 3, dtype=torch.float64), torch.randn(4, 6, 3, dtype=torch.float64)
    for frozen in (True, False):
        results = []
        for layer in layers("BatchNorm1d", 3, dtype=torch.float64):
            layer.train(training).requires_grad_(not frozen)
            leaf = x.clone().requires_grad_()
            of = (leaf, *layer.parameters()) if not frozen else (leaf,)
            results.append(torch.autograd.grad(layer(leaf), of, dys, is_grads_batched=True))
        torch.testing.assert_close(results[1], results[0])


def test_the_second_derivative_of_16_bits_is_computed_in_32(kernel_calls):
    gradients = {}
    x = torch.randn(16, 3).bfloat16()
    for name, library in LIBRARIES.items():
        layer = library.BatchNorm1d(3)
        leaf = x.clone().requires_grad_()
        (dx,) = torch.autograd.grad(layer(leaf).pow(2).sum(), leaf, create_graph=True)
        dx.pow(2).sum().backward()
        gradients[name] = leaf.grad, layer.weight.grad
    exact = torch.nn.BatchNorm1d(3).double()
    leaf = x.double().requires_grad_()
    (dx,) = torch.autograd.grad(exact(leaf).pow(2).sum(), leaf, create_graph=True)
    dx.pow(2).sum().backward()
    for number, expected in enumerate((leaf.grad, exact.weight.grad)):
        theirs, ours = ((gradients[name][number] - expected).abs().max() for name in LIBRARIES)
        assert gradients["bnext.torch"][number].dtype == gradients["torch.nn"][number].dtype
        assert ours <= 2 * theirs + 1e-6
    assert kernel_calls == {"forward": 1, "backward": 2}  # the first time to be differentiated


@pytest.mark.parametrize("statistics", STATISTICS)
def test_first_and_second_derivatives_in_one_loss(statistics):
    """Of a layer that is used twice in one graph."""
    results = []
    for function in (THEIRS, OURS):
        torch.manual_seed(5)
        x, weight, bias = double(6, 3), double(3), double(3)
        call = function_of(statistics, 3, function)
        y = call(call(x, weight, bias).sin(), weight)
        first = torch.autograd.grad(y.square().sum(), (x, weight, bias), create_graph=True)
        loss = y.sum() + sum((each * each.sin()).sum() for each in first)
        results.append(torch.autograd.grad(loss, (x, weight, bias)))
    torch.testing.assert_close(results[1], results[0])


def gradients_of_gradients(function, statistics, dtype, offset, eps):
    """dx, dweight and dbias with their graph, and gradients of all three through it."""
    torch.manual_seed(9)
    x, dy, of_dx = (torch.randn(32, 4, 8, 8).double() for _ in range(3))
    x = (x + offset).float().to(dtype).requires_grad_()
    dy, weight = dy.to(dtype).requires_grad_(), (torch.rand(4) + 0.5).to(dtype).requires_grad_()
    bias = torch.zeros(4, dtype=dtype, requires_grad=True)
    constants = torch.full((4,), offset).to(dtype), torch.ones(4).to(dtype)
    of_batch = statistics == "batch"
    given = (None, None) if of_batch else constants
    y = function(x, *given, weight, bias, of_batch, eps=eps)
    first = torch.autograd.grad(y, (x, weight, bias), dy, create_graph=True)
    of_first = (of_dx.to(dtype), torch.randn(4).to(dtype), torch.randn(4).to(dtype))
    second = torch.autograd.grad(first, (dy, x, weight), of_first)
    names = ("dx", "dweight", "dbias", "of dy", "of x", "of weight")
    return {name: g.detach() for name, g in zip(names, (*first, *second), strict=True)}


@pytest.mark.parametrize("eps", [1e-5, 0.5])
@pytest.mark.parametrize("offset", [0.0, 1e2, 1e3, 1e4, 1e5])
@pytest.mark.parametrize("statistics", STATISTICS)
def test_gradients_keep_their_digits_with_a_graph(statistics, offset, eps):
    """Of first and of second order, however far the data is from zero."""
    exact, theirs, ours = (
        gradients_of_gradients(function, statistics, dtype, offset, eps)
        for function, dtype in ((THEIRS, torch.float64), (THEIRS, torch.float32),
                                (OURS, torch.float32))
    )  # fmt: skip
    for name, expected in exact.items():
        scale = float(expected.abs().max())
        off, off_theirs = (float((g[name] - expected).abs().max()) / scale for g in (ours, theirs))
        assert off <= max(1e-6, off_theirs), (name, off, off_theirs)


@pytest.mark.parametrize("statistics", STATISTICS)
def test_the_derivative_by_weight_is_summed_in_64_bits(statistics):
    """Of large terms that cancel: each value is there twice, and its gradients have two signs."""
    torch.manual_seed(9)
    x, dy = (torch.randn(16, 4, 8, 8).repeat(2, 1, 1, 1) for _ in range(2))
    of_dx = torch.randn(32, 4, 8, 8)
    of_dx[:16] += 4096.0
    of_dx[16:] -= 4096.0
    results = []
    for dtype in (torch.float64, torch.float32):
        weight = torch.ones(4, dtype=dtype, requires_grad=True)
        constants = torch.zeros(4, dtype=dtype), torch.ones(4, dtype=dtype)
        given = (None, None) if statistics == "batch" else constants
        leaf = x.to(dtype).requires_grad_()
        y = OURS(leaf, *given, weight, None, statistics == "batch")
        (dx,) = torch.autograd.grad(y, leaf, dy.to(dtype), create_graph=True)
        results += torch.autograd.grad(dx, weight, of_dx.to(dtype))
    torch.testing.assert_close(results[1].double(), results[0], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("statistics", STATISTICS)
def test_first_gradients_are_the_kernels_with_a_graph_too(statistics, dtype):
    """To the bit; with parameters that want gradients or not."""
    layer = bnext.torch.BatchNorm2d(4).train(statistics == "batch")
    for wants in (True, False):
        layer.requires_grad_(wants)
        x, dy = ((torch.randn(6, 4, 5, 3) + 100).to(dtype) for _ in range(2))
        x.requires_grad_()
        of = (x, *layer.parameters()) if wants else (x,)
        results = [
            torch.autograd.grad(layer(x), of, dy, create_graph=graph) for graph in (False, True)
        ]
        for plain, with_graph in zip(*results, strict=True):
            assert torch.equal(plain, with_graph)
