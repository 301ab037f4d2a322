"""The four phases by themselves: composed, they give the bits of the fused calls."""

import numpy as np
import pytest

import bnext
from bnext import _core
from bnext.rows import ROW

from .cases import FEW
from .compare import assert_is_y, assert_same_bits

pytestmark = pytest.mark.parametrize("case", FEW, ids=str)


def test_forward_is_its_two_phases(rng, isa, schedule, case, dtype):
    x = case.x(rng, dtype)
    weight, bias = case.weight(rng, dtype), case.bias(rng, dtype)
    axis = {"channel_axis": case.channel_axis}
    y, saved = bnext.batch_norm_forward(x, weight, bias, **axis)
    moments = bnext.moments(x, **axis)
    assert_same_bits(saved.mean, moments.mean)
    assert_same_bits(saved.m2, moments.m2)
    if dtype == np.float64:  # whose mean has a low part besides
        assert_is_y(y, x, moments.mean, moments.var, weight, bias, **axis)
    else:
        assert_same_bits(y, bnext.normalize(x, moments.mean, moments.var, weight, bias, **axis))


def test_forward_of_a_group_of_one(rng, isa, schedule, case, dtype):
    """The phases as groups call them, with the running statistics that move last."""
    x = case.x(rng, dtype)
    parameters = case.weight(rng, dtype), case.bias(rng, dtype)
    running = [rng.uniform(0.5, 2, (2, case.channels)).astype(dtype)] * 2
    (mean, var), (moved_mean, moved_var) = (rows.copy() for rows in running)
    counts = np.zeros((), np.int64), np.zeros((), np.int64)
    options = (1e-5, case.channel_axis, None)
    y, saved = _core.forward(
        x, *parameters, *options, running_mean=mean, running_var=var, momentum=0.3,
        num_batches_tracked=counts[0],
    )  # fmt: skip
    count, *rows, name = _core.collect_stats(
        x, *parameters, moved_mean, moved_var, 0.3, counts[1], *options
    )  # fmt: skip
    assert name == np.dtype(dtype).name
    assert_same_bits(moved_mean, running[0][0])
    again, of_group = _core.apply_norm(x, count, *rows, *parameters, *options)
    assert_same_bits(again, y)
    assert of_group.batch_statistics
    assert of_group.count == saved.count
    for row in ROW._fields:
        assert_same_bits(getattr(of_group, row), getattr(saved, row), row)
    _core.move_running(of_group, moved_mean, moved_var, 0.3, counts[1])
    assert_same_bits(moved_mean, mean)
    assert_same_bits(moved_var, var)
    assert counts[0] == counts[1] == 1


def test_backward_is_its_two_phases(rng, isa, schedule, case, dtype):
    x, dy = case.x(rng, dtype), case.dy(rng, dtype)
    weight = case.weight(rng, dtype)
    _, saved = bnext.batch_norm_forward(x, channel_axis=case.channel_axis)
    dx, dweight, dbias = bnext.batch_norm_backward(dy, x, saved, weight)
    sum_dy, sum_dy_xmu = _core.backward_reduce(dy, x, saved)
    assert_same_bits(dbias, sum_dy.astype(dtype))
    assert_same_bits(dweight, (sum_dy_xmu * saved.rstd).astype(dtype))
    of_parameters = _core.parameter_gradients(saved, weight, sum_dy, sum_dy_xmu)
    assert_same_bits(of_parameters[0], dweight)
    assert_same_bits(of_parameters[1], dbias)
    arguments = (dy, x, saved, weight, sum_dy, sum_dy_xmu, saved.count)
    out = np.full_like(dx, np.nan)
    assert _core.backward_apply(*arguments, out) is out
    assert_same_bits(dx, out)
