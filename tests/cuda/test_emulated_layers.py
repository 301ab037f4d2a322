"""Layers on PyTorch's tensors on a GPU: plain tensors beside the general road."""

import pytest

import bnext
from bnext.arrays import engine_of

from .roads import (
    DTYPES,
    LAYOUTS,
    arguments,
    assert_equal,
    both_ways,
    kernels,
    layer,
    outcome,
    torch,
)

pytestmark = pytest.mark.usefixtures("pretended", "seeded")

STATE = ("running_mean", "running_var", "num_batches_tracked")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "last"), LAYOUTS, ids=str)
@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_layers(roads, shape, last, dtype, recorded, training):
    x, dy, *_ = arguments(shape, dtype, last)

    def everything():
        torch.manual_seed(1)
        bn = layer(shape, dtype, momentum=0.3).train(training)
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_(recorded)
        versions = [getattr(bn, name)._version for name in STATE]
        with torch.set_grad_enabled(recorded):
            y = bn(leaf)
        found = [y]
        if recorded:
            found += torch.autograd.grad(y, (leaf, *bn.parameters()), dy)
        for name, version in zip(STATE, versions, strict=True):
            found += [getattr(bn, name), getattr(bn, name)._version > version]
        return found

    first = both_ways(roads, everything)
    assert first[-2] == int(training)


@pytest.mark.parametrize("options", [{"affine": False}, {"track_running_stats": False}], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_layers_without(roads, options, training):
    x, dy, *_ = arguments((4, 6, 3, 5), torch.float32)

    def everything():
        bn = bnext.torch.BatchNorm2d(6, **options).train(training)
        leaf = x.clone().requires_grad_()
        y = bn(leaf)
        return y, torch.autograd.grad(y, leaf, dy), list(bn.buffers())

    both_ways(roads, everything)


@pytest.mark.parametrize("momentum", [None, 1, 0.0])
def test_layers_of_any_momentum(roads, momentum):
    x, *_ = arguments((4, 6, 3, 5), torch.float32)

    def everything():
        bn = bnext.torch.BatchNorm2d(6, momentum=momentum)
        return bn(x), bn(x), list(bn.buffers())

    first, _ = roads.short(everything)
    assert_equal(first, roads.general(everything)[0])
    assert first[-1] == 2


def test_frozen_parameters(roads):
    """No gradient of parameters is wanted: by batch statistics, and by constants."""
    x, dy, *_ = arguments((4, 6, 3, 5), torch.float32)
    for training in (True, False):

        def everything(training=training):
            torch.manual_seed(1)
            bn = layer(x.shape, x.dtype).train(training).requires_grad_(False)
            leaf = x.clone().requires_grad_()
            return torch.autograd.grad(bn(leaf), leaf, dy)

        both_ways(roads, everything)


def test_only_parameters_want_gradients(roads):
    x, dy, *_ = arguments((4, 6, 3, 5), torch.float32)

    def everything():
        bn = bnext.torch.BatchNorm2d(6)
        return torch.autograd.grad(bn(x), tuple(bn.parameters()), dy)

    both_ways(roads, everything)


def test_gradients_of_expanded_and_zero_tensors(roads):
    """What sums and undefined outputs send back has strides of 0, or no memory."""
    x, *_ = arguments((4, 6, 3, 5), torch.float32)

    def everything():
        bn = bnext.torch.BatchNorm2d(6)
        leaf = x.clone().requires_grad_()
        bn(leaf).sum().backward()
        return leaf.grad, [p.grad for p in bn.parameters()]

    both_ways(roads, everything, short=False)


def test_checkpointing_moves_running_statistics_once():
    from torch.utils.checkpoint import checkpoint

    x = torch.randn(4, 6, 3, 5, requires_grad=True)
    bn = bnext.torch.BatchNorm2d(6)
    checkpoint(bn, x, use_reentrant=False).square().sum().backward()
    assert bn.num_batches_tracked == 1
    once = bnext.torch.BatchNorm2d(6)
    once(x.detach())
    assert torch.equal(bn.running_mean, once.running_mean)


def test_in_place_changes_of_x_are_noticed():
    x = torch.randn(4, 6, 3, 5)
    bn = bnext.torch.BatchNorm2d(6)
    leaf = x.clone().requires_grad_()
    inner = leaf * 1
    y = bn(inner)
    inner.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_evaluation_after_training_notices_moved_statistics():
    """Autograd keeps no running statistics, and a write to them is counted all the same."""
    bn = bnext.torch.BatchNorm1d(3)
    before = bn.running_mean._version
    bn(torch.randn(7, 3))
    assert bn.running_mean._version > before


def test_inference_tensors(roads):
    x = torch.randn(7, 3)
    with torch.inference_mode():
        inside = bnext.torch.BatchNorm1d(3)
        y = inside(x)
        assert inside.num_batches_tracked == 1
        assert y.is_inference()

    def outside():
        with torch.inference_mode():
            bn = bnext.torch.BatchNorm1d(3)
        with torch.no_grad():
            return [*outcome(bn, x), bn.running_mean.clone(), bn.num_batches_tracked.clone()]

    first, _ = roads.short(outside)
    assert_equal(first, roads.general(outside)[0])
    assert first[0] is RuntimeError


def test_a_launch_that_fails_counts_nothing(monkeypatch, pretended):
    def forward(**operands):
        raise RuntimeError("CUDA: cudaLaunchKernelExC: out of luck")

    monkeypatch.setattr(engine_of(torch.ones(1)), "forward", forward)
    bn = bnext.torch.BatchNorm1d(3)
    versions = [getattr(bn, name)._version for name in STATE]
    for x in (torch.randn(7, 3), torch.randn(7, 3, requires_grad=True)):
        with pytest.raises(RuntimeError, match="out of luck"):
            bn(x)
    assert bn.num_batches_tracked == 0
    assert versions == [getattr(bn, name)._version for name in STATE]


def test_own_layers_of_arrays(roads):
    """`bnext.BatchNorm` on PyTorch's tensors: its count of batches is NumPy's."""
    x, dy, *_ = arguments((4, 6, 3, 5), torch.float32)

    def everything():
        bn = bnext.BatchNorm2d(6).to(x)
        found = [bn(x), bn.backward(dy), bn.weight_grad, bn.running_mean, bn.running_var]
        found.append(int(bn.num_batches_tracked))
        bn.freeze()
        return [*found, bn(x), bn.backward(dy)]

    both_ways(roads, everything)


# --- with an activation and a residual -----------------------------------------------------------


def after(y, name, residual):
    """What follows normalization, by PyTorch's operators."""
    if residual is not None:
        y = y + residual
    return y if name is None else bnext.torch.epilogues.ACTIVATIONS[name](y, 0.25)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [*bnext.torch.epilogues.ACTIVATIONS, None])
@pytest.mark.parametrize("with_residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("training", [True, False])
def test_epilogues(roads, monkeypatch, name, dtype, with_residual, training):
    """By either road, and as PyTorch's operators have it."""
    x, dy, *_ = arguments((3, 4, 5, 4), dtype)
    residual = torch.randn(x.shape).to(dtype) if with_residual else None

    def call(bn, apply):
        leaves = [each.clone().requires_grad_() for each in (x, residual) if each is not None]
        y = apply(bn, *leaves)
        return [y, *torch.autograd.grad(y, (*leaves, *bn.parameters()), dy), *bn.buffers()]

    def everything():
        torch.manual_seed(1)
        return call(layer((3, 4, 5, 4), dtype, activation=name, negative_slope=0.25)
                    .train(training), lambda bn, *of: bn(*of))  # fmt: skip

    actual = both_ways(roads, everything)
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "forward", refused)
        wide = x.double(), dy.double(), residual if residual is None else residual.double()
        x, dy, residual = wide
        torch.manual_seed(1)
        bn = layer((3, 4, 5, 4), dtype).double().train(training)
        expected = call(bn, lambda bn, of, r=None: after(bn(of), name, r))
    rtol = {torch.float64: 1e-9, torch.float32: 2e-4}.get(dtype, 4e-2)
    for one, other in zip(actual[:-1], expected[:-1], strict=True):
        scale = float(other.detach().abs().max()) + 1
        torch.testing.assert_close(one.double(), other, rtol=rtol, atol=rtol * scale)


def refused(*arguments):
    raise kernels.KernelRefusal


def test_epilogues_twice():
    """Second derivatives, beside finite differences."""
    x, residual = torch.randn(2, 4, 3, 5).double()
    weight, bias = torch.randn(2, 3).double()
    leaves = [each.requires_grad_() for each in (x, weight, bias, residual)]
    for name in ("silu", "tanh"):

        def call(x, weight, bias, residual, name=name):
            return bnext.torch.functional.batch_norm(
                x, None, None, weight, bias, True, activation=name, residual=residual
            )

        assert torch.autograd.gradcheck(call, leaves)
        assert torch.autograd.gradgradcheck(call, leaves)


# --- without kernels ------------------------------------------------------------------------------


def test_without_kernels_the_short_way_is_left_at_once(monkeypatch):
    """Also the CPU's calls are not asked about a tensor on a GPU."""
    monkeypatch.setattr(kernels, "_THERE", {})
    monkeypatch.setattr(kernels, "_FOUND", [False])
    monkeypatch.setattr(kernels, "_core", object())  # to ask them is an error
    for training in (True, False):
        bn = bnext.torch.BatchNorm1d(3).train(training)
        for x in (torch.randn(7, 3), torch.randn(7, 3, requires_grad=True)):
            y = bn(x)
            if x.requires_grad:
                y.sum().backward()
