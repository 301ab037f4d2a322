"""torch.compile of layers with an activation, and of fused models."""

import copy

import pytest

import bnext

from .architectures import ARCHITECTURES
from .support import COMPILED, assert_close, name_of_dtype, torch

ACTIVATIONS = bnext.torch.epilogues.ACTIVATIONS

pytestmark = COMPILED
forward = torch.ops.bnext.statistics_and_coefficients.default
plain_backward = torch.ops.bnext.backward_by_batch.default
backward = torch.ops.bnext.activated_backward_by_batch.default


@pytest.fixture
def kernel_names(monkeypatch):
    """Names of the kernels that compiled code has called."""
    from bnext.torch import kernels

    seen = []

    def watched(name, run):
        def call(*arguments):
            seen.append(name)
            return run(*arguments)

        return call

    for name in ("statistics", "activated_backward_by_rows", "backward_by_rows"):
        monkeypatch.setattr(kernels, name, watched(name, getattr(kernels, name)))
    return seen


def gradients_of(call, x, dy, layer):
    layer.zero_grad()
    leaf = x.clone().requires_grad_()
    y = call(leaf)
    y.backward(dy)
    return [y, leaf.grad, *(p.grad.clone() for p in layer.parameters()), layer.running_var.clone()]


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of_dtype)
def test_compile_of_layers_with_an_activation(dtype, backend, kernel_names, small_by_kernels):
    """Each activation beside the eager layer; the backward kernel makes z again."""
    names = [*ACTIVATIONS] if backend == "aot_eager" else ["relu"]
    for name in names:
        torch.compiler.reset()
        layer = bnext.torch.BatchNorm2d(5, activation=name, negative_slope=0.3)
        torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
        torch.nn.init.uniform_(layer.bias, -1.0, 1.0)
        reference = copy.deepcopy(layer)
        call = torch.compile(layer, backend=backend, fullgraph=True, dynamic=False)
        for memory_format in (torch.contiguous_format, torch.channels_last):
            x, dy = torch.randn(2, 4, 5, 3, 6).to(dtype)
            x = x.contiguous(memory_format=memory_format)
            actual = gradients_of(call, x, dy, layer)
            expected = gradients_of(reference, x, dy, reference)
            for one, other in zip(actual, expected, strict=True):
                assert_close(one, other, name, 10.0)
            assert actual[0].stride() == expected[0].stride()
    assert kernel_names == ["statistics", "activated_backward_by_rows"] * 2 * len(names)


def test_compile_of_a_layer_with_a_residual():
    layer = bnext.torch.BatchNorm1d(5, activation="relu")
    reference = copy.deepcopy(layer)
    call = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for training in (True, False):
        layer.train(training)
        reference.train(training)
        x, r, dy = torch.randn(3, 6, 5)
        results = []
        for each in (call, reference):
            leaves = [x.clone().requires_grad_(), r.clone().requires_grad_()]
            y = each(*leaves)
            y.backward(dy)
            results.append([y, *(leaf.grad for leaf in leaves)])
        for one, other in zip(*results, strict=True):
            assert_close(one, other, "result", 10.0)


@pytest.mark.parametrize("name", ["residual", "mobilenet", "dense", "crossstage", "preactivated"])
def test_compile_of_fused_models(name, kernel_names):
    """Whole training steps; without a break."""
    build, shape, _, _ = ARCHITECTURES[name]
    model = build().double()
    reference = copy.deepcopy(model)
    bnext.torch.convert(model, fuse=True)
    backend = "inductor" if name == "mobilenet" else "aot_eager"  # Inductor is slow
    call = torch.compile(model, backend=backend, fullgraph=True)
    losses = []
    for each, run in ((model, call), (reference, reference)):
        torch.manual_seed(4)
        optimizer = torch.optim.SGD(each.parameters(), lr=0.05)
        for _ in range(2):
            optimizer.zero_grad()
            loss = run(torch.randn(shape).double()).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    torch.testing.assert_close(losses[:2], losses[2:])
    for key, value in reference.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=1e-7, atol=1e-8)
    fused = bnext.torch.report(model).fused
    alone = sum(not each.residual for each in fused)
    assert kernel_names.count("activated_backward_by_rows") == 2 * alone
    assert kernel_names.count("statistics") == 2 * len(bnext.torch.report(model).exchanged)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=name_of_dtype)
def test_activated_operator_answers_in_the_layout_that_was_foretold(dtype):
    from torch._subclasses import FakeTensorMode

    parameter = torch.float64 if dtype == torch.float64 else torch.float32
    weight = torch.randn(5, dtype=parameter)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        for other in (torch.contiguous_format, torch.channels_last):
            x, dy = torch.randn(2, 3, 5, 4, 2).to(dtype)
            x, dy = x.contiguous(memory_format=memory_format), dy.contiguous(memory_format=other)
            rows, _ = forward(x, weight, weight, 1e-5)
            real = backward(dy, x, weight, weight, rows, 1e-5, "silu", 0.01)
            with FakeTensorMode() as mode:
                given = [mode.from_tensor(each) for each in (dy, x, weight, weight, rows)]
                fake = backward(*given, 1e-5, "silu", 0.01)
            for result, told in zip(real, fake, strict=True):
                assert (result.shape, result.stride()) == (told.shape, told.stride())
                assert result.dtype == told.dtype


def test_activated_operators_twice():
    """Of the operator by itself: its backward pass has one in turn."""
    x, weight, bias = torch.randn(4, 3).double(), torch.rand(3).double(), torch.randn(3).double()
    inputs = [each.requires_grad_() for each in (x, weight, bias)]

    def call(*inputs):
        return torch.ops.bnext.activated_batch_norm_training(*inputs, 1e-5, "silu", 0.01)[0]

    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


def test_activated_operator_takes_every_layout():
    assert not hasattr(torch.Tag, "flexible_layout") or torch.Tag.flexible_layout in backward.tags
