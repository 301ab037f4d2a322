"""Masks, lengths and weights in PyTorch's layers: the NumPy layers' results, through autograd."""

import numpy as np
import pytest

import bnext
from benchmarks import masks as benchmark

from ..groups.support import members, new_group
from .support import DTYPES, name_of_dtype, torch

SHAPE = (6, 5, 9)


def drawn(dtype=torch.float32, seed=0):
    """x, dy, a mask, weights and lengths."""
    generator = torch.Generator().manual_seed(seed)
    x, dy = (torch.randn(SHAPE, generator=generator).to(dtype) for _ in range(2))
    mask = torch.rand((6, 9), generator=generator) < 0.5
    weights = torch.rand((6, 9), generator=generator) * mask
    return x, dy, mask, weights, torch.tensor([9, 0, 3, 5, 1, 8])


def layer_pair(dtype=torch.float32):
    """Ours in PyTorch, and NumPy's of the same parameters."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    ours = bnext.torch.BatchNorm1d(5, dtype=wide)
    with torch.no_grad():
        ours.weight.copy_(torch.linspace(-1, 2, 5))
        ours.bias.copy_(torch.linspace(1, 2, 5))
    of_numpy = bnext.BatchNorm1d(5, dtype=str(wide).removeprefix("torch."))
    of_numpy.load_state_dict({k: v.numpy() for k, v in ours.state_dict().items()})
    return ours, of_numpy


@pytest.mark.parametrize("kind", ["mask", "sample_weight", "lengths"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of_dtype)
def test_the_numpy_layers_bits(dtype, kind):
    x, dy, mask, weights, lengths = drawn(dtype)
    given = {"mask": mask, "sample_weight": weights, "lengths": lengths}[kind]
    ours, of_numpy = layer_pair(dtype)
    x.requires_grad_()
    y = ours(x, **{kind: given})
    y.backward(dy)
    expected = of_numpy(x.detach(), **{kind: given})
    dx = of_numpy.backward(dy)
    assert y.dtype == x.grad.dtype == dtype
    assert torch.equal(y.detach(), expected)
    assert torch.equal(x.grad, dx)
    np.testing.assert_array_equal(ours.weight.grad, of_numpy.weight_grad)
    np.testing.assert_array_equal(ours.bias.grad, of_numpy.bias_grad)
    for name, buffer in ours.named_buffers():
        np.testing.assert_array_equal(buffer, getattr(of_numpy, name), err_msg=name)
    ours.eval(), of_numpy.eval()
    y = ours(x, **{kind: given}, masked="unchanged")
    assert torch.equal(y.detach(), of_numpy(x.detach(), **{kind: given}, masked="unchanged"))


def test_gradients_are_derivatives():
    x, _, _, weights, _ = drawn(torch.float64)
    layer, _ = layer_pair(torch.float64)
    x = x[:3, :, :4].contiguous().requires_grad_()

    def function(x, weight, bias):
        y = torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,), {
            "sample_weight": weights[:3, :4] + 0.1,
        })  # fmt: skip
        return y

    assert torch.autograd.gradcheck(function, (x, layer.weight, layer.bias))


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("activation", [None, "relu", "silu"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of_dtype)
def test_an_activation_and_a_residual(dtype, activation, residual):
    """The NumPy layer's bits, of a tensor under the mask that has NaN."""
    x, dy, mask, weights, _ = drawn(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    ours = bnext.torch.BatchNorm1d(5, dtype=wide, activation=activation)
    of_numpy = bnext.BatchNorm1d(5, dtype=str(wide).removeprefix("torch."), activation=activation)
    over = mask[:, None].expand(SHAPE)
    added = torch.where(over, drawn(dtype, seed=1)[0], torch.nan) if residual else None
    leaves = [each.clone().requires_grad_() for each in (x, added) if each is not None]
    y = ours(*leaves, sample_weight=weights)
    y.backward(torch.where(over, dy, torch.nan))
    expected = of_numpy(x, residual=added, sample_weight=weights)
    gradients = of_numpy.backward(torch.where(over, dy, torch.nan))
    assert torch.equal(y.detach(), expected)
    for leaf, value in zip(leaves, gradients if residual else [gradients], strict=True):
        assert torch.equal(leaf.grad, value)
    np.testing.assert_array_equal(ours.weight.grad, of_numpy.weight_grad)
    np.testing.assert_array_equal(ours.bias.grad, of_numpy.bias_grad)
    ours.eval(), of_numpy.eval()
    y = ours(*leaves, mask=mask).detach()
    assert torch.equal(y, of_numpy(x, residual=added, mask=mask))


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_gradients_through_an_activation_are_derivatives(activation):
    x, _, _, weights, _ = drawn(torch.float64)
    layer = bnext.torch.BatchNorm1d(5, dtype=torch.float64, activation=activation)
    x = x[:3, :, :4].contiguous().requires_grad_()
    residual = drawn(torch.float64, seed=1)[0][:3, :, :4].contiguous().requires_grad_()

    def function(x, residual):
        return layer(x, residual, sample_weight=weights[:3, :4] + 0.1)

    assert torch.autograd.gradcheck(function, (x, residual))


def test_a_mask_that_is_true_everywhere_is_none():
    x, _, mask, *_ = drawn()
    one, two = layer_pair()[0], layer_pair()[0]
    assert torch.equal(one(x, mask=torch.ones_like(mask)), two(x))
    assert torch.equal(one.running_var, two.running_var)


def test_what_is_masked_does_not_leak():
    x, dy, mask, *_ = drawn()
    over = mask[:, None].expand(SHAPE)
    results = []
    for bad in (float("nan"), float("inf"), 7.0):
        layer, _ = layer_pair()
        dirty = torch.where(over, x, bad).requires_grad_()
        y = layer(dirty, mask=mask)
        y.backward(torch.where(over, dy, bad))
        results.append((y.detach(), dirty.grad, layer.weight.grad, layer.running_mean))
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))
    assert not results[0][0][~over].any()
    assert not results[0][1][~over].any()


def test_checkpointing_moves_running_statistics_once():
    x, dy, mask, *_ = drawn()
    one, two = layer_pair()[0], layer_pair()[0]
    x.requires_grad_()
    y = torch.utils.checkpoint.checkpoint(lambda x: one(x, mask=mask), x, use_reentrant=False)
    y.backward(dy)
    two(x.detach(), mask=mask)
    for name, buffer in one.named_buffers():
        assert torch.equal(buffer, getattr(two, name)), name


def test_errors():
    x, _, mask, *_ = drawn()
    layer, _ = layer_pair()
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    activated = bnext.torch.BatchNorm1d(5, activation="relu")
    for wrong, given, kind, text in (
        (layer, {"mask": mask[:3]}, ValueError, "^mask: expected shape"),
        (layer, {"mask": mask.float()}, TypeError, "^mask: expected dtype bool"),
        (layer, {"mask": mask, "residual": x[:2]}, ValueError, "^residual: expected shape"),
        (activated, {"lengths": mask, "mask": mask}, ValueError, "^lengths: expected None beside"),
        (layer, {"mask": mask, "masked": "x"}, ValueError, "^masked: expected 'zero'"),
    ):
        with pytest.raises(kind, match=text):
            wrong(x, **given)
    with pytest.raises(ValueError, match=r"^mask: expected None for what is no plain tensor"):
        torch.func.vmap(lambda x: layer(x, mask=mask))(x[None])
    y = layer(x.requires_grad_(), mask=mask)
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
    layer.load_state_dict(before)


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("size", [2, 3])
def test_sync_batch_norm(size, activation):
    """Members that hold unequal parts, one without a position that counts."""
    x, dy, mask, *_ = drawn(torch.float64)
    mask[:1] = False
    counts = [1, 5] if size == 2 else [1, 2, 3]
    group = new_group(size)
    layer = bnext.torch.SyncBatchNorm(
        5, process_group=group, dtype=torch.float64, activation=activation
    )
    whole = bnext.torch.BatchNorm1d(5, dtype=torch.float64, activation=activation)
    parts = list(zip(*(each.split(counts) for each in (x, dy, mask)), strict=True))

    def body(rank):
        shard, gradient, part = parts[rank]
        shard = shard.clone().requires_grad_()
        y = layer(shard, mask=part)
        y.backward(gradient)
        return y.detach(), shard.grad

    results = members(group, body)
    x.requires_grad_()
    y = whole(x, mask=mask)
    y.backward(dy)
    torch.testing.assert_close(torch.cat([r[0] for r in results]), y.detach())
    torch.testing.assert_close(torch.cat([r[1] for r in results]), x.grad)
    torch.testing.assert_close(layer.running_var, whole.running_var)


def test_the_benchmarks_composition_and_command(monkeypatch, capsys):
    """It computes what the layer does, and a row of each layout and argument is printed."""
    x, _, mask, *_ = drawn()
    weight, bias = torch.linspace(-1, 2, 5), torch.linspace(1, 2, 5)
    over = mask[:, None].float()
    theirs = benchmark.composition(torch, x, weight, bias, over, (0, 2), (1, -1, 1))()
    layer, _ = layer_pair()
    torch.testing.assert_close(theirs, layer(x, mask=mask).detach(), rtol=0, atol=1e-5)
    monkeypatch.setattr(benchmark, "SHAPE", SHAPE)
    assert benchmark.main(["--seconds", "0.01", "--threads", "1"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if ", " in line[:24]]
    for layout in ("planar", "channels last"):
        for name in ("lengths", "padded", "scattered", "weights"):
            assert any(row.startswith(f"{layout}, {name}") for row in rows), (layout, name)
