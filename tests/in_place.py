"""Calls in place (``out=x``), and their comparison with the formula.

What a call in place computes is split in two. Its arithmetic is compared with the formula, in
float64 or longer, of the very y that it has stored. What the rounding of y costs is compared with
the gradients of x, and bounded as the docstring of `batch_norm_forward` says.
"""

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

import bnext

from . import reference, sixteen, tolerances
from .activations import SLOPE
from .compare import assert_same_bits, assert_within, largest, units
from .epilogues import DTYPES, computed, is_16_bit
from .sixteen import name_of

NAMES = pytest.mark.parametrize("name", [None, "leaky_relu"])
DATA = pytest.mark.parametrize("dtype", DTYPES, ids=name_of)


class InPlace(NamedTuple):
    y: Any  # a copy
    saved: Any
    dx: Any
    dweight: Any
    dbias: Any


def both_in_place(inputs, over_dy=True, **options):
    """Results of a forward call over x and a backward call over dy."""
    x, dy = map(inputs.case.memory.place, (inputs.x, inputs.dy))
    y, saved = bnext.batch_norm_forward(
        x, inputs.weight, inputs.bias, out=x, **inputs.options, **options
    )
    assert y is x
    assert saved.in_place is True
    kept = y.copy()
    dx, dweight, dbias = bnext.batch_norm_backward(
        dy, y, saved, inputs.weight, out=dy if over_dy else None
    )
    assert (dx is dy) == over_dy
    assert_same_bits(y, kept, "y after the backward pass")
    return InPlace(kept, saved, dx.copy(), dweight, dbias)


class FromOutput:
    """The gradients that follow from a stored y, one row a channel, in float64 or longer."""

    def __init__(self, inputs, y, saved, constant=False):
        axis, channels = inputs.case.channel_axis, inputs.case.channels
        self.inputs, self.axis = inputs, axis
        wide = np.longdouble if inputs.x.dtype == np.float64 else np.float64

        def column(values, otherwise):
            return reference.column(values, channels, otherwise).astype(wide)

        self.weight, bias = column(inputs.weight, 1.0), column(inputs.bias, 0.0)
        rows = reference.per_channel(y, axis).astype(wide)
        below = rows < 0 if inputs.name == "leaky_relu" else np.zeros(rows.shape, bool)
        self.z = np.where(below, rows / wide(SLOPE), rows)
        positive = (rows > 0) | (inputs.name is None)
        self.g = reference.per_channel(inputs.dy, axis).astype(wide)
        self.g = self.g * np.where(positive, 1, wide(SLOPE))
        self.xhat = (self.z - bias) / self.weight
        self.rstd = saved.rstd.astype(wide)[:, None]
        n = max(rows.shape[1], 1)
        self.dbias = self.g.sum(axis=1, keepdims=True)
        self.dweight = (self.g * self.xhat).sum(axis=1, keepdims=True)
        scale = self.weight * self.rstd
        self.terms = [self.g, self.dbias / n, self.z / self.weight * self.dweight / n,
                      bias / self.weight * self.dweight / n]  # fmt: skip
        if constant:
            self.terms = [self.g]
            self.dx = scale * self.g
        else:
            self.dx = scale * (self.g - self.dbias / n - self.xhat * self.dweight / n)
        self.scale = np.abs(scale)[:, 0]

    def assert_are_gradients(self, results):
        dtype = self.inputs.x.dtype.type
        bits = computed(dtype)
        terms = np.maximum.reduce([largest(each) for each in self.terms])
        # As tolerances.py has it; one unit for z, which is rounded too, and one for g.
        allowed = (tolerances.DX[bits] + 2) * units((self.scale * terms).astype(float), bits)
        allowed = np.broadcast_to(allowed[:, None], self.dx.shape)
        expected = self.dx.astype(np.float64)
        if is_16_bit(dtype):
            # Sums in float32, of as many terms as are added before they go to float64.
            lost = 2.0**-22 * self.scale * np.abs(self.g).mean(axis=1) if self.g.size else 0.0
            lost = lost * (1 + largest(self.xhat) ** 2)
            allowed = allowed + np.asarray(lost, np.float64)[:, None]
            allowed = allowed + sixteen.units(np.abs(expected) + allowed, dtype) / 2
        tiny = np.finfo(bits).smallest_subnormal
        rows = reference.per_channel(results.dx, self.axis)
        assert_within(rows, expected, allowed + tiny, "dx")
        for what, terms in (("dweight", self.g * self.xhat), ("dbias", self.g)):
            # z - bias cancels: each of its terms counts.
            parts = np.abs(self.g) * (np.abs(self.z / self.weight) + np.abs(self.xhat))
            size = (np.abs(terms) if what == "dbias" else parts).sum(axis=1).astype(float)
            total = terms.sum(axis=1).astype(float)
            known = tolerances.PARAMETER_GRADIENT[bits] * units(np.abs(total), bits)
            known = known + size * (2.0**-22 if is_16_bit(dtype) else 2.0**-50)
            if bits is np.float32:
                known = known + units(np.abs(total), bits)
            assert_within(getattr(results, what), total, known + tiny, what)


def rounding(dtype):
    return float(ml_dtypes.finfo(dtype).eps) / 2
