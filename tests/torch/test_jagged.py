"""Jagged tensors in bnext.torch's layers: the values of all examples are the batch."""

import pytest

import bnext

from .support import torch

OFFSETS = torch.tensor([0, 4, 4, 9, 16])


def jagged(values, offsets=OFFSETS, lengths=None):
    return torch.nested.nested_tensor_from_jagged(values, offsets, lengths)


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("activation", [None, "relu", "silu"])
@pytest.mark.parametrize(("kind", "rest"), [("1d", ()), ("1d", (6,)), ("2d", (3, 2))])
def test_values_are_the_batch(kind, rest, activation):
    layer, plain = (
        getattr(bnext.torch, f"BatchNorm{kind}")(5, activation=activation) for _ in range(2)
    )
    values, dy, added = (drawn(16, 5, *rest, seed=seed) for seed in range(3))
    leaf = values.clone().requires_grad_()
    y = layer(jagged(leaf), jagged(added))
    assert y.offsets() is OFFSETS
    y.values().backward(dy)
    other = values.clone().requires_grad_()
    expected = plain(other, added)
    expected.backward(dy)
    assert torch.equal(y.values(), expected)
    assert torch.equal(leaf.grad, other.grad)
    for name, buffer in layer.named_buffers():
        assert torch.equal(buffer, getattr(plain, name)), name
    assert (y + jagged(added)).shape == y.shape


def test_the_ragged_axis_may_be_the_last():
    """(B, C, *): sequences with channels first."""
    layer, plain = bnext.torch.BatchNorm1d(5), bnext.torch.BatchNorm1d(5)
    values = drawn(16, 5)
    y = layer(jagged(values).transpose(1, 2))
    assert y.shape[:2] == (4, 5)
    assert torch.equal(y.values().t(), plain(values))


def test_holes_and_padding_do_not_count():
    """Of a tensor with lengths, and of values beyond the last example."""
    lengths, counts = torch.tensor([2, 0, 5, 3]), torch.zeros(20, dtype=torch.bool)
    for begin, length in zip(OFFSETS, lengths, strict=False):
        counts[begin : begin + length] = True
    values = torch.where(counts[:, None], drawn(20, 5), torch.nan).requires_grad_()
    layer, plain = bnext.torch.BatchNorm1d(5), bnext.torch.BatchNorm1d(5)
    y = layer(jagged(values, lengths=lengths))
    expected = plain(values.detach()[counts])
    torch.testing.assert_close(y.values()[counts], expected)
    assert torch.equal(y.lengths(), lengths)
    assert not y.values()[~counts].any()
    y.values().square().sum().backward()
    assert not values.grad[~counts].any()
    torch.testing.assert_close(layer.running_var, plain.running_var)


def test_weights_of_examples():
    layer, plain = bnext.torch.BatchNorm1d(5), bnext.torch.BatchNorm1d(5)
    values, weights = drawn(16, 5), torch.tensor([1.0, 7.0, 0.0, 2.0])
    y = layer(jagged(values), sample_weight=weights)
    each = torch.repeat_interleave(weights, OFFSETS.diff())
    assert torch.equal(y.values(), plain(values, sample_weight=each))
    layer.eval(), plain.eval()
    assert torch.equal(layer(jagged(values)).values(), plain(values))


def test_errors():
    layer = bnext.torch.BatchNorm2d(5)
    values = drawn(16, 5, 3, 2)
    for name in ("mask", "lengths", "offsets"):
        with pytest.raises(ValueError, match=f"^{name}: expected None for a jagged input"):
            layer(jagged(values), **{name: OFFSETS})
    with pytest.raises(ValueError, match=r"^input: expected a jagged tensor of shape \(B, \*, C"):
        layer(jagged(values).transpose(1, 2))
    for residual in (values, jagged(values, OFFSETS.clone())):
        with pytest.raises(ValueError, match=r"^residual: expected a jagged tensor of the input"):
            layer(jagged(values), residual)
