"""Batch normalization as it is defined, in float64 on the GPU: for inputs that NumPy is slow for.

The formulas are those of tests/reference.py, in PyTorch; tests/cuda/test_gpu_values.py compares the
two.
"""

from typing import Any, NamedTuple

from .. import tolerances
from .compare_there import DEVIATION, M2

# A 16-bit result is computed in float32 or better and rounded once: a unit at most, and the nearest
# value but in one of a hundred, where the exact one lies between two.
NOT_NEAREST = 0.01


class Expected(NamedTuple):
    """What forward and backward should give, and the largest magnitude of what it is the sum of.

    `of_mean` is how well the mean is known, and `slope` what that is worth in y.
    """

    mean: Any
    of_mean: Any
    m2: Any
    slope: Any
    rstd: Any
    y: Any
    y_scale: Any
    dx: Any
    dx_scale: Any
    dweight: Any
    dweight_scale: Any
    dbias: Any
    dbias_scale: Any


def rows_of(array, axis):
    """The values in float64, one row a channel."""
    moved = array.movedim(axis, 0)
    return moved.reshape(moved.shape[0], -1).double()


def expected(torch, x, dy, weight, bias, axis, eps=1e-5):
    """Both passes; rows of y and dx are channels."""
    narrow = x.dtype != torch.float64
    x, dy = rows_of(x, axis), rows_of(dy, axis)
    weight, bias = weight.double()[:, None], bias.double()[:, None]
    n = x.shape[1]
    mean = x.mean(1, keepdim=True)
    mean = mean + (x - mean).mean(1, keepdim=True)
    centred = x - mean
    m2 = (centred**2).sum(1, keepdim=True)
    rstd = (m2 / n + eps).rsqrt()
    xhat = centred * rstd
    product = xhat * weight
    y = product + bias
    dbias, dweight = dy.sum(1, keepdim=True), (dy * xhat).sum(1, keepdim=True)
    slope = weight * rstd
    dx = slope * (dy - dbias / n - xhat * (dweight / n))

    def largest(rows):
        return rows.abs().amax(1, keepdim=True)

    def of_sum(terms):
        return terms.sum(1).abs().maximum((terms**2).sum(1).sqrt())

    terms = largest(dy).maximum(dbias.abs() / n).maximum(largest(xhat) * dweight.abs() / n)
    of_mean = 16 * torch.finfo(torch.float64).eps * largest(x)
    if narrow:
        of_mean = of_mean + DEVIATION * largest(centred)
    return Expected(
        mean[:, 0], of_mean[:, 0], m2[:, 0], slope.abs()[:, 0], rstd[:, 0],
        y, largest(y).maximum(largest(product)).maximum(bias.abs()),
        dx, slope.abs() * terms,
        dweight[:, 0], of_sum(dy * xhat), dbias[:, 0], of_sum(dy),
    )  # fmt: skip


def units(torch, scale, dtype):
    """One unit in the last place of `dtype` at each magnitude of `scale`."""
    information = torch.finfo(dtype)
    return information.eps * scale.clamp(min=information.tiny).log2().floor().exp2()


def assert_rows(torch, actual, wanted, scale, dtype, bounds, known, what):
    """`actual`, rows or a vector, is `wanted` within its dtype's bound at `scale`, and `known`."""
    off = ((actual.double() - wanted).abs() - known) / units(torch, scale, dtype)
    off = off.amax().item()
    name = str(dtype).removeprefix("torch.")
    if name in ("float16", "bfloat16"):
        assert off <= 1.0, f"{what}: off by {off:.3g} units"
        wrong = (actual.to(dtype) != wanted.to(dtype)).double().mean().item()
        assert wrong <= NOT_NEAREST, f"{what}: {wrong:.2%} not the nearest"
        return
    bound = {kind.__name__: value for kind, value in bounds.items()}[name]
    assert off <= bound, f"{what}: off by {off:.3g} units, {bound} allowed"


def assert_forward(torch, y, saved, expected, axis):
    """`y` and the statistics are those expected."""
    off = ((saved.mean - expected.mean).abs() / (expected.of_mean + 1e-300)).amax().item()
    assert off <= 1.0, f"mean: {off:.3g} times the allowed error"
    off = ((saved.m2 - expected.m2) / expected.m2).abs().amax().item()
    assert off <= (1e-13 if y.dtype == torch.float64 else M2), f"m2: off by {off:.3g} of it"
    known = (expected.of_mean * expected.slope)[:, None]
    rows, scale = rows_of(y, axis), expected.y_scale
    assert_rows(torch, rows, expected.y, scale, y.dtype, tolerances.Y, known, "y")


def assert_backward(torch, gradients, expected, axis):
    """The three gradients are those expected."""
    dx, dweight, dbias = gradients
    rows, bounds, scale = rows_of(dx, axis), tolerances.DX, expected.dx_scale
    of_xhat = expected.of_mean * expected.rstd
    terms = (expected.dweight.abs() + expected.dbias.abs() * 8) / rows.shape[1]
    known = (expected.slope * of_xhat * terms)[:, None]
    assert_rows(torch, rows, expected.dx, scale, dx.dtype, bounds, known, "dx")
    bounds = tolerances.PARAMETER_GRADIENT
    for name, actual in (("dweight", dweight), ("dbias", dbias)):
        wanted, scale = getattr(expected, name), getattr(expected, f"{name}_scale")
        known = of_xhat * expected.dbias.abs() if name == "dweight" else 0.0
        assert_rows(torch, actual, wanted, scale, actual.dtype, bounds, known, name)
