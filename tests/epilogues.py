"""Calls with an activation and a residual, and their comparison with `activations.py`.

Bounds are those of calls without them (`tolerances.py`), carried through the activation: an error
of z is worth STEEPEST times as much in y, and MOST_CURVED times as much in act'(z).
"""

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

import bnext

from . import activations, reference, sixteen, tolerances
from .activations import MOST_CURVED, SLOPE, STEEPEST
from .cases import Case, Memory
from .compare import assert_within, largest, mean_units, slope_of, units

DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]

# Every walk of the kernels, at sizes that leave some packs half full.
CASES = [
    Case("odd-planes", (3, 5, 7, 9)),
    Case("small-planes", (5, 19, 2, 3)),
    Case("rows", (37, 19)),
    Case("interleaved", (2, 3, 5, 33), channel_axis=-1),
    Case("three-channels-last", (3, 7, 9, 3), channel_axis=-1),
    Case("stored-NHWC", (2, 21, 3, 5), memory=Memory(order=(0, 2, 3, 1))),
    Case("channels-of-more", (3, 5, 7, 7), memory=Memory(margins={1: (2, 1)})),
    Case("cropped", (3, 5, 7, 11), memory=Memory(margins={2: (1, 2), 3: (2, 3)})),
    Case("one-channel", (19, 1, 5)),
]


def is_16_bit(dtype):
    return np.dtype(dtype).itemsize == 2


def computed(dtype):
    """The dtype that data of `dtype` are computed in; parameters have it."""
    return np.float32 if is_16_bit(dtype) else np.dtype(dtype).type


class Inputs(NamedTuple):
    """What one call of each pass takes. z is nowhere near a kink, unless dy is 0 there."""

    name: str | None
    case: Case
    x: np.ndarray
    dy: np.ndarray
    residual: np.ndarray | None
    weight: np.ndarray | None
    bias: np.ndarray | None

    @property
    def options(self):
        """Keywords of the forward pass."""
        return {
            "channel_axis": self.case.channel_axis, "residual": self.residual,
            "activation": self.name, "negative_slope": SLOPE,
        }  # fmt: skip

    def again(self, saved):
        """Keywords of the backward pass."""
        return {"residual": self.residual} if saved.reads_residual else {}


class Results(NamedTuple):
    y: Any
    dx: Any
    dweight: Any
    dbias: Any
    dresidual: Any = None


def drawn(rng, case, dtype, name, with_residual, statistics=None, eps=1e-5, data=None):
    """Random inputs; `statistics` = (mean, var) where they are given, else the batch's count.

    `data` = (x, dy) instead of ordinary ones.
    """
    parameters = computed(dtype)
    x, dy = data or (case.x(rng, dtype), case.dy(rng, dtype))
    weight, bias = case.weight(rng, parameters), case.bias(rng, parameters)
    residual = case.dy(rng, dtype) if with_residual else None
    if statistics is None:
        batch = reference.moments(x, case.channel_axis)
        statistics = batch.mean, batch.var
    z = activations.pre_activation(
        x, residual, *statistics, weight, bias, eps=eps, channel_axis=case.channel_axis
    )
    dy = case.memory.place(activations.without_kinks(dy, z, name))
    return Inputs(name, case, x, dy, residual, weight, bias)


def both_passes(inputs, **options):
    """Results of a forward and a backward call."""
    y, saved = bnext.batch_norm_forward(
        inputs.x, inputs.weight, inputs.bias, **inputs.options, **options
    )
    gradients = bnext.batch_norm_backward(
        inputs.dy, inputs.x, saved, inputs.weight, **inputs.again(saved)
    )
    assert len(gradients) == (3 if inputs.residual is None else 4)
    return Results(y, *gradients)


class Expected:
    """What `inputs` give, one row a channel, and how far results may be from it."""

    def __init__(self, inputs, statistics=None, eps=1e-5):
        self.inputs = inputs
        self.axis, self.constant = inputs.case.channel_axis, statistics is not None
        self.dtype = inputs.x.dtype.type
        self.bits = computed(self.dtype)
        x, weight = inputs.x, inputs.weight
        if statistics is None:
            batch = reference.moments(x, self.axis)
            statistics = batch.mean, batch.var
        act = activations.of(inputs.name)
        self.xhat = reference.standardize(x, *statistics, eps=eps, channel_axis=self.axis)
        product = self.xhat * reference.column(weight, len(self.xhat), 1.0)
        shift = reference.column(inputs.bias, len(self.xhat), 0.0)
        terms = [product, shift, product + shift]
        z = product + shift
        if inputs.residual is not None:
            added = reference.per_channel(inputs.residual, self.axis)
            z = z + added
            terms += [added, z]
        self.slope = slope_of(statistics[1], weight, eps)
        of_mean = tolerances.MEAN[self.bits] * mean_units(x, self.axis)
        if is_16_bit(self.dtype):  # whose moments are sums in float32 (test_16bit.py)
            with np.errstate(divide="ignore", invalid="ignore"):
                farthest = np.nan_to_num(largest(self.xhat) / reference.rstd(statistics[1], eps))
            of_mean += 2.0**-23 * np.sqrt(statistics[1]) + 2.0**-21 * farthest
        scale = np.max([largest(each) for each in terms], axis=0)
        # One unit more for the rounding of the sum.
        of_z = (tolerances.Y[self.bits] + 1) * units(scale, self.bits) + of_mean * self.slope
        self.y = act.value(z)
        of_function = tolerances.ACTIVATION * units(largest(self.y), self.bits)
        self.of_y = STEEPEST * of_z + of_function

        dy = reference.per_channel(inputs.dy, self.axis)
        self.g = dy * act.derivative(z)
        of_derivative = tolerances.ACTIVATION * units(STEEPEST, self.bits)
        self.of_g = largest(dy) * (MOST_CURVED * of_z + of_derivative)
        if inputs.name is None:
            self.of_g[:] = 0
        self.of_xhat = reference.rstd(statistics[1], eps) * of_mean
        n = max(self.g.shape[1], 1)
        self.dbias, self.dweight = self.g.sum(axis=1), (self.g * self.xhat).sum(axis=1)
        projection, mean_g = np.abs(self.dweight) / n, np.abs(self.dbias) / n
        signed = reference.column(weight, len(self.xhat), 1.0)
        signed = signed * reference.rstd(statistics[1], eps)[:, None]
        if self.constant:
            self.dx = signed * self.g
            of_terms, of_sums = largest(self.g), 0.0
            self.of_dx = self.slope * self.of_g
        else:
            centred = self.g - self.dbias[:, None] / n - self.xhat * self.dweight[:, None] / n
            self.dx = signed * centred
            of_terms = np.maximum.reduce([largest(self.g), mean_g, largest(self.xhat) * projection])
            of_sums = self.of_xhat * (projection + largest(self.xhat) * mean_g)
            self.of_dx = self.slope * self.of_g * (2 + largest(self.xhat))
        self.of_dx = self.of_dx + tolerances.DX[self.bits] * units(self.slope * of_terms, self.bits)
        self.of_dx += tolerances.MEAN[self.bits] * self.slope * of_sums

    def _assert_data(self, actual, expected, allowed, what):
        assert actual.dtype == self.dtype, what
        rows = reference.per_channel(actual, self.axis)
        allowed = np.broadcast_to(allowed[:, None], rows.shape)
        if is_16_bit(self.dtype):  # and rounded once, which is half a unit
            allowed = allowed + sixteen.units(np.abs(expected) + allowed, self.dtype) / 2
        assert_within(rows, expected, allowed + np.finfo(self.bits).smallest_subnormal, what)

    def _assert_sum(self, actual, terms, known, what):
        assert actual.dtype == self.bits, what
        with np.errstate(over="ignore"):  # sums may leave the range
            expected = terms.sum(axis=1).astype(self.bits).astype(np.float64)
        scale = np.maximum(np.abs(expected), np.sqrt((terms**2).sum(axis=1)))
        allowed = tolerances.PARAMETER_GRADIENT[self.bits] * units(scale, self.bits) + known
        if is_16_bit(self.dtype):  # sums in float32
            allowed += 2.0**-23 * np.abs(terms).sum(axis=1)
        assert_within(actual, expected, allowed + np.finfo(self.bits).smallest_subnormal, what)

    def assert_is_y(self, y):
        self._assert_data(y, self.y, self.of_y, "y")

    def assert_are_gradients(self, dx, dweight, dbias, dresidual=None):
        self._assert_data(dx, self.dx, self.of_dx, "dx")
        of_mean = tolerances.MEAN[self.bits] * self.of_xhat * np.abs(self.dbias)
        of_weight = self.of_g * np.abs(self.xhat).sum(axis=1) + of_mean
        self._assert_sum(dweight, self.g * self.xhat, of_weight, "dweight")
        self._assert_sum(dbias, self.g, self.of_g * self.g.shape[1], "dbias")
        assert (dresidual is None) == (self.inputs.residual is None)
        if dresidual is not None:
            self._assert_data(dresidual, self.g, self.of_g, "dresidual")

    def assert_are_results(self, results):
        self.assert_is_y(results[0])
        self.assert_are_gradients(*results[1:])
