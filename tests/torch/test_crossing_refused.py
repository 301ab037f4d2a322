"""Tensors that DLPack's table does not read: calls for plain ones refuse them."""

import pytest

from bnext import _core
from bnext.rows import ROW

from .plain import arguments, backward, backward_constant, by_running, forward, unusual
from .support import torch

from bnext.torch import kernels  # isort: skip - of which there is nothing without PyTorch

pytestmark = pytest.mark.skipif(
    not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"), reason="a PyTorch without the table"
)
REFUSED = pytest.raises((TypeError, ValueError))


def not_plain():
    names = ("x", "weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    usual = dict(zip(names, arguments((4, 6, 3, 5), torch.float32), strict=True))
    x = torch.ones(4, 6, 3, 5)
    return unusual(usual, ("complex", "x", x.to(torch.complex64)), ("meta", "x", x.to("meta")))


@pytest.mark.parametrize("arguments", list(not_plain()))
def test_what_is_not_plain_is_left_alone(arguments):
    x, w, b, mean, var, counter = arguments
    buffers = [t for t in (mean, var, counter) if t is not None]
    before = [t.clone() for t in buffers]
    with REFUSED:
        forward(x, w, b, mean, var, 0.1, counter)
    assert all(map(torch.equal, buffers, before))
    if counter.dtype == torch.int64 and counter.dim() == 0 and tuple(x.shape) != (1, 6):
        with REFUSED:
            by_running(_core.normalize_by_running, x, mean, var, w, b, out=None)
        with REFUSED:
            by_running(_core.evaluate, x, mean, var, w, b)


@pytest.mark.parametrize(
    ("momentum", "eps"),
    [(float("nan"), 1e-5), (float("inf"), 1e-5), (0.1, -1.0), (0.1, float("nan"))],
)
def test_numbers_that_are_wrong_are_left_alone(momentum, eps):
    x, w, b, mean, var, counter = arguments((4, 6), torch.float32)
    before = mean.clone()
    with REFUSED:
        forward(x, w, b, mean, var, momentum, counter, eps)
    assert torch.equal(mean, before)
    assert counter == 5


def test_gradients_that_are_not_plain_are_left_alone():
    x = torch.randn(4, 6, 3, 5)
    _, saved = forward(x)
    others = (x.double(), x[:2], x.transpose(0, 1), torch.ones(()).expand(4, 6, 3, 5))
    for dy in (*others, torch._neg_view(x)):
        with REFUSED:
            backward(dy, x, saved)
    with REFUSED:
        backward_constant(x, saved)  # of no constants
    _, given = by_running(_core.normalize_by_running, x, torch.zeros(6), torch.ones(6), out=None)
    for dy in (*others, torch._neg_view(x)):
        with REFUSED:
            backward_constant(dy, given)


def test_statistics_of_what_is_not_plain():
    x, weight = torch.randn(4, 6, 3, 5), torch.randn(6)
    rows, coefficients = kernels.statistics(x, weight, None, 1e-5)
    assert (coefficients.shape, rows.shape) == ((4, 6), (len(ROW), 6))
    sliced = torch.cat((x, x), dim=3)[..., :5]
    pairs = torch.stack((weight, weight), dim=1)[:, 0]
    for other in (sliced, torch._neg_view(-x), x.mT.contiguous().mT):
        for vector in (pairs, torch._neg_view(-weight)):
            results = kernels.statistics(other, vector, None, 1e-5)
            torch.testing.assert_close(results, (rows, coefficients), rtol=1e-6, atol=1e-6)
    zeros, _ = kernels.statistics(torch._efficientzerotensor(x.shape), None, None, 1e-5)
    assert not zeros[[ROW.mean, ROW.m2, ROW.var]].any()
    for vector in (weight.double(), weight[:5]):
        for given in ((vector, None), (None, vector)):
            with REFUSED:
                kernels.statistics(x, *given, 1e-5)
    for eps in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"^eps: "):
            kernels.statistics(x, None, None, eps)
