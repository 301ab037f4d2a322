"""Second derivatives by kernels: used wherever autograd asks, equal to formulas, and more exact."""

import pytest

import bnext

from .penalties import second_gradients_of
from .support import torch

CPU_NORM = bnext.torch.functional.batch_norm
KINDS = {
    "plain": (None, False), "residual": (None, True), "relu": ("relu", False),
    "relu and residual": ("relu", True), "silu": ("silu", False),
    "silu and residual": ("silu", True),
}  # fmt: skip


@pytest.fixture
def counted(monkeypatch):
    """How often kernels have differentiated a backward pass."""
    calls = []
    run = bnext._core.double_backward

    def double_backward(**operands):
        result = run(**operands)
        calls.append(operands)
        return result

    # `_core` is an extension module; the spine calls it by its name.
    monkeypatch.setattr(bnext._core, "double_backward", double_backward)
    return calls


def by_formulas(monkeypatch):
    monkeypatch.setattr(bnext.torch.kernels, "double_backward", lambda *_: None)


def second_gradients(kind, dtype, shape, offset=0.0, statistics="batch", channels_last=False):
    activation, has_residual = KINDS[kind]
    torch.manual_seed(7)
    channels = shape[1]
    like = {"memory_format": torch.channels_last} if channels_last else {}

    def data(mean=0.0):
        values = torch.randn(shape, dtype=torch.float64).add(mean).float().to(dtype)
        return values.contiguous(**like).requires_grad_()

    x, dy, residual = data(offset), data(offset if activation is None else 0.0), data()
    parameters = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    weight = (torch.rand(channels) + 0.5).to(parameters).requires_grad_()
    bias = torch.randn(channels).to(parameters).requires_grad_()
    mean, var = torch.full((channels,), offset).to(parameters), torch.ones(channels).to(parameters)
    given = (None, None) if statistics == "batch" else (mean, var)
    y = CPU_NORM(
        x, *given, weight, bias, statistics == "batch", activation=activation,
        residual=residual if has_residual else None,
    )  # fmt: skip
    inputs = [x, weight, bias, *([residual] if has_residual else [])]
    first = torch.autograd.grad(y, inputs, dy, create_graph=True)
    outer = [torch.randn(each.shape).to(each.dtype) for each in first]
    of = [dy, x, weight, *([bias] if activation == "silu" else [])]
    if activation == "silu" and has_residual:
        of.append(residual)
    return torch.autograd.grad(first, of, outer, allow_unused=True)


@pytest.mark.parametrize("statistics", ["batch", "running"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_torch_kernels_and_formulas_agree(
    dtype, kind, statistics, channels_last, counted, monkeypatch
):
    options = {"statistics": statistics, "channels_last": channels_last}
    ours = second_gradients(kind, dtype, (5, 7, 3, 5), **options)
    assert len(counted) == 1
    by_formulas(monkeypatch)
    others = second_gradients(kind, dtype, (5, 7, 3, 5), **options)
    assert len(counted) == 1
    step = {torch.float64: 1e-11, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
    for one, other in zip(ours, others, strict=True):
        assert one.dtype == other.dtype
        if one.dim() == 4 and channels_last:
            assert one.is_contiguous(memory_format=torch.channels_last)
        scale = max(1.0, float(other.abs().max()))
        assert float((one - other).abs().max()) <= step[dtype] * scale


@pytest.mark.parametrize("kind", ["plain", "relu", "silu"])
def test_second_derivatives_keep_their_digits(kind):
    """At mean / std = 10^4 of x (and dy), beside float64 of the same values."""
    shape = (32, 4, 8, 8)
    exact = second_gradients(kind, torch.float64, shape, 1e4)
    actual = second_gradients(kind, torch.float32, shape, 1e4)
    for one, right in zip(actual, exact, strict=True):
        assert float((one - right).abs().max() / right.abs().max()) <= 2e-6


@pytest.mark.parametrize("by", ["kernels", "formulas"])
@pytest.mark.parametrize("kind", KINDS)
def test_third_derivatives(kind, by, monkeypatch):
    """Formulas differentiate what kernels, or they, have differentiated."""
    if by == "formulas":
        by_formulas(monkeypatch)
    activation, has_residual = KINDS[kind]
    x, residual = (torch.randn(6, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight, bias = (torch.randn(2, dtype=torch.float64, requires_grad=True) for _ in range(2))

    of_x = second_gradients_of(CPU_NORM, activation, has_residual)
    assert torch.autograd.gradcheck(of_x, (x, weight, bias, residual))


def test_gradient_penalty_with_a_frozen_layer(counted):
    x = torch.randn(4, 3, 5, requires_grad=True)
    layer = bnext.torch.BatchNorm1d(3).eval().requires_grad_(False)
    (dx,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    dx.square().sum().backward()
    expected = 8 * x.detach() / (1 + layer.eps) ** 2
    torch.testing.assert_close(x.grad, expected)


def test_hooks_that_change_x(counted):
    """What is saved comes back rounded: formulas take what hooks give."""
    x = torch.randn(6, 3, requires_grad=True)

    def pack(tensor):
        return tensor.detach().clone()

    layer = bnext.torch.BatchNorm1d(3)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor * (1 + 1e-3)):
        y = layer(x)
        (dx,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
    dx.square().sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("ways", ["expanded", "transposed", "zero"])
def test_outer_gradients_in_any_memory(ways):
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    layer = bnext.torch.BatchNorm2d(3).double()
    outer = {
        "expanded": torch.randn(1, 3, 1, 5).double().expand(4, 3, 5, 5),
        "transposed": torch.randn(4, 3, 5, 5).double().transpose(2, 3),
        "zero": torch.zeros(4, 3, 5, 5).double(),
    }[ways]
    results = []
    for each in (layer, torch.nn.BatchNorm2d(3).double()):
        (dx,) = torch.autograd.grad(each(x).pow(3).sum(), x, create_graph=True)
        results.append(torch.autograd.grad(dx, (x, each.weight), outer))
    torch.testing.assert_close(results[0], results[1])
