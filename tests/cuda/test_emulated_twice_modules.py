"""PyTorch's tensors on a GPU, differentiated twice: by the emulated kernels, beside formulas."""

import pytest

import bnext
from bnext.arrays import DeviceSaved

from ..groups.support import new_group
from ..torch.penalties import (
    differentiate_shards_twice,
    differentiate_twice,
    second_gradients_of,
)
from ..torch.test_double_backward import KINDS, by_formulas, second_gradients
from ..torch.test_sync_twice import check, replicas_of
from .roads import both_ways, kernels, torch

pytestmark = pytest.mark.usefixtures("pretended", "seeded")

KIND = pytest.mark.parametrize("kind", KINDS)
STATISTICS = pytest.mark.parametrize("statistics", ["batch", "running"])
# Of what an outer gradient may be: the largest difference from formulas, of the largest value.
STEPS = {torch.float64: 1e-11, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@pytest.fixture
def launched(pretended, monkeypatch):
    """The launches of each double backward pass that kernels have done."""
    counts = []
    run = bnext.spine.double_backward

    def double_backward(**operands):
        assert isinstance(operands["saved"], DeviceSaved)
        pretended.record(True)
        try:
            result = run(**operands)
        finally:
            requests = pretended.record(False)
        counts.append([what for what, _ in requests].count("run"))
        return result

    monkeypatch.setattr(kernels.spine, "double_backward", double_backward)
    return counts


@STATISTICS
@KIND
@pytest.mark.parametrize("dtype", STEPS, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_kernels_and_formulas_agree(dtype, kind, statistics, channels_last, launched, monkeypatch):
    options = {"statistics": statistics, "channels_last": channels_last}
    ours = second_gradients(kind, dtype, (5, 7, 3, 5), **options)
    assert launched == [4]
    by_formulas(monkeypatch)
    others = second_gradients(kind, dtype, (5, 7, 3, 5), **options)
    assert launched == [4]
    for one, other in zip(ours, others, strict=True):
        assert one.dtype == other.dtype
        if one.dim() == 4 and channels_last:
            assert one.is_contiguous(memory_format=torch.channels_last)
        scale = max(1.0, float(other.abs().max()))
        assert float((one - other).abs().max()) <= STEPS[dtype] * scale


@KIND
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_either_road_gives_the_same_bits(roads, kind, dtype):
    both_ways(roads, lambda: second_gradients(kind, dtype, (3, 4, 5, 4)))


@pytest.mark.parametrize("kind", ["plain", "relu", "silu"])
def test_second_derivatives_keep_their_digits(kind, launched):
    """At mean / std = 10^4 of x, and without an activation of dy."""
    shape = (32, 4, 8, 8)
    exact = second_gradients(kind, torch.float64, shape, 1e4)
    actual = second_gradients(kind, torch.float32, shape, 1e4)
    assert launched == [4, 4]
    for one, right in zip(actual, exact, strict=True):
        assert float((one - right).abs().max() / right.abs().max()) <= 2e-6


@STATISTICS
@KIND
def test_finite_differences(kind, statistics, launched):
    activation, has_residual = KINDS[kind]
    x, residual = (torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True) for _ in "ab")
    weight, bias = (torch.randn(2, dtype=torch.float64, requires_grad=True) for _ in "ab")
    given = (None, None) if statistics == "batch" else torch.tensor([[0.5, -1], [2, 1]]).double()

    def call(x, weight, bias, residual):
        return bnext.torch.functional.batch_norm(
            x, *given, weight, bias, statistics == "batch", activation=activation,
            residual=residual if has_residual else None,
        )  # fmt: skip

    assert torch.autograd.gradgradcheck(call, (x, weight, bias, residual))
    assert launched
    assert set(launched) == {4}


@pytest.mark.parametrize("kind", ["plain", "silu and residual"])
def test_third_derivatives(kind, launched):
    activation, has_residual = KINDS[kind]
    x, residual = (torch.randn(4, 2, 2, dtype=torch.float64, requires_grad=True) for _ in "ab")
    weight, bias = (torch.randn(2, dtype=torch.float64, requires_grad=True) for _ in "ab")

    norm = bnext.torch.functional.batch_norm
    second = second_gradients_of(norm, activation, has_residual)
    assert torch.autograd.gradcheck(second, (x, weight, bias, residual))
    assert set(launched) == {4}


def test_a_penalty_of_a_layer_whose_parameters_are_fixed():
    x = torch.randn(4, 3, 5, requires_grad=True)
    layer = bnext.torch.BatchNorm1d(3).eval().requires_grad_(False)
    (dx,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    dx.square().sum().backward()
    torch.testing.assert_close(x.grad, 8 * x.detach() / (1 + layer.eps) ** 2)


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4, 4), (2, 3, 0)])
def test_without_values(shape):
    x = torch.zeros(shape, requires_grad=True)
    layer = bnext.torch.functional.batch_norm
    weight = torch.ones(3, requires_grad=True)
    mean, var = torch.zeros(3), torch.ones(3)
    y = layer(x, mean, var, weight, None, False)
    dx, dweight = torch.autograd.grad(y, (x, weight), y.detach(), create_graph=True)
    found = torch.autograd.grad(dx.sum() + dweight.sum(), (x, weight), allow_unused=True)
    for each, like in zip(found, (x, weight), strict=True):
        assert each is None or each.shape == like.shape
        assert each is None or not each.any()


@pytest.mark.parametrize("has_residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize("cut", ["unequal", "empty-in-between"])
def test_members_of_a_group(cut, activation, has_residual):
    theirs = torch.nn.BatchNorm2d(5).double()
    torch.nn.init.normal_(theirs.weight)
    x, residual = torch.randn(2, 9, 5, 3, 4, dtype=torch.float64)
    residual = residual if has_residual else None
    group = new_group(3)
    replicas = replicas_of(theirs, group, activation)

    results = differentiate_shards_twice(group, replicas, cut, x, residual, activation)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    check(results, differentiate_twice(theirs, x, residual, activation))


@pytest.mark.parametrize("dtype", STEPS, ids=str)
def test_totals_of_a_group(dtype):
    """By the functions: what a call with the whole batch gives, for each member the same."""
    of_parameters = torch.float64 if dtype == torch.float64 else torch.float32
    arrays = torch.randn(3, 9, 5, 3, 4).to(dtype)
    weight = torch.rand(5).to(of_parameters) + 0.5
    outer = torch.randn(2, 2, 5).to(of_parameters)  # by ddweight and ddbias, of each member
    group = new_group(2)

    def second(ddx, dy, x, given, group=None, kind="local"):
        saved = bnext.batch_norm_forward(x, weight, activation="silu", group=group)[1]
        return bnext.batch_norm_double_backward(
            ddx, dy, x, saved, weight, ddweight=given[0], ddbias=given[1], parameter_gradients=kind
        )

    parts = [arrays[:, :4], arrays[:, 4:]]
    results = group.run(lambda rank, part: second(*part, outer[rank], group, "total"), parts)
    whole = second(*arrays, outer.sum(0))
    for name in ("dy", "x"):
        joined = torch.cat([getattr(result, name) for result in results])
        assert joined.dtype == dtype
        scale = max(1.0, float(getattr(whole, name).abs().max()))
        assert float((joined - getattr(whole, name)).abs().max()) <= STEPS[dtype] * scale
    for name in ("weight", "bias"):
        one, other = (getattr(result, name) for result in results)
        assert one.dtype == of_parameters
        assert torch.equal(one, other)
        torch.testing.assert_close(one, getattr(whole, name), rtol=1e-5, atol=1e-5)
