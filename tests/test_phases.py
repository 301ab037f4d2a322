"""The four phases by themselves: composed, they give the bits of the fused calls."""

import numpy as np
import pytest

import bnext
from bnext import _core

from .cases import FEW
from .compare import assert_same_bits

pytestmark = pytest.mark.parametrize("case", FEW, ids=str)


def test_forward_is_its_two_phases(rng, isa, schedule, case, dtype):
    x = case.x(rng, dtype)
    weight, bias = case.weight(rng, dtype), case.bias(rng, dtype)
    axis = {"channel_axis": case.channel_axis}
    y, saved = bnext.batch_norm_forward(x, weight, bias, **axis)
    moments = bnext.moments(x, **axis)
    assert_same_bits(saved.mean, moments.mean)
    assert_same_bits(saved.m2, moments.m2)
    assert_same_bits(y, bnext.normalize(x, moments.mean, moments.var, weight, bias, **axis))


def test_backward_is_its_two_phases(rng, isa, schedule, case, dtype):
    x, dy = case.x(rng, dtype), case.dy(rng, dtype)
    weight = case.weight(rng, dtype)
    _, saved = bnext.batch_norm_forward(x, channel_axis=case.channel_axis)
    dx, dweight, dbias = bnext.batch_norm_backward(dy, x, saved, weight)
    sum_dy, sum_dy_xmu = _core.backward_reduce(dy, x, saved)
    assert_same_bits(dbias, sum_dy.astype(dtype))
    assert_same_bits(dweight, (sum_dy_xmu * saved.rstd).astype(dtype))
    arguments = (dy, x, saved, weight, sum_dy, sum_dy_xmu, saved.count)
    out = np.full_like(dx, np.nan)
    assert _core.backward_apply(*arguments, out) is out
    assert_same_bits(dx, out)
