"""Planes of less than a pack, which are walked as columns of rows."""

import ml_dtypes
import numpy as np
import pytest

import bnext

from . import reference
from .cases import Case, Memory
from .compare import assert_are_gradients, assert_are_moments, assert_is_forward, assert_is_y
from .conftest import SCHEDULES
from .limits import SOAK
from .sixteen import assert_is_rounded

VALUES = range(2, 18)  # in a plane; from 16 on planes are walked by themselves
CHANNELS = (1, 2, 3, 15, 16, 17, 33, 131)
EXAMPLES = (1, 2, 5, 17)


@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("values", VALUES)
def test_every_size(rng, isa, dtype, values):
    for i, channels in enumerate(CHANNELS):
        # Every second pair; planes of the next size have the other half. With BNEXT_SOAK the other
        # dtype has it, so that every pair is there for each size.
        other = SOAK != 1 and dtype == np.float64
        for examples in EXAMPLES[(i + values + other) % 2 :: 2]:
            case = Case("", (examples, channels, values), memory=Memory(margins={0: (1, 1)}))
            x, dy = case.x(rng, dtype), case.dy(rng, dtype)
            weight, bias = case.weight(rng, dtype), case.bias(rng, dtype)
            bnext._core.force_schedule((None, *SCHEDULES)[(i + examples) % 4])
            whole, out = case.memory.allocate(case.shape, dtype)
            y, saved = bnext.batch_norm_forward(x, weight, bias, out=out)
            assert_are_moments(saved, x)
            assert_is_forward(y, x, weight, bias)
            gradients = bnext.batch_norm_backward(dy, x, saved, weight, out=out)
            assert_are_gradients(gradients, dy, x, weight)
            bnext.normalize(x, saved.mean, saved.var, weight, bias, out=out)
            assert_is_y(out, x, saved.mean, saved.var, weight, bias)
            assert np.isnan(whole[[0, -1]]).all(), "written beyond the output"


@pytest.mark.usefixtures("runtime")
def test_outputs_whose_planes_do_not_adjoin(rng, dtype):
    """Inputs' alone do not make rows."""
    x, dy = rng.normal(size=(2, 33, 19, 2, 2)).astype(dtype)
    apart = Case("", x.shape, memory=Memory(steps={1: 2}))
    whole, out = apart.memory.allocate(x.shape, dtype)
    y, saved = bnext.batch_norm_forward(x, out=out)
    assert_is_forward(y, x)
    assert_are_gradients(bnext.batch_norm_backward(dy, x, saved, out=out), dy, x)
    assert np.isnan(whole[:, 1::2]).all()
    assert_is_forward(bnext.batch_norm_forward(apart.memory.place(x), out=x.copy())[0], x)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("values", [2, 4, 9, 15])
def test_channels_far_apart_in_one_row(rng, dtype, values):
    """Means from -10^6 to 10^6 deviations side by side: a pilot of the wrong channel would show."""
    mean = np.linspace(-1e6, 1e6, 37)[:, None]
    x = (rng.normal(size=(19, 37, values)) + mean).astype(dtype)
    x[0, ::3] += 1e5  # and outliers where pilots are looked for
    x[-1, ::5, -1] -= 1e6
    y, saved = bnext.batch_norm_forward(x)
    assert_are_moments(saved, x)
    assert_is_forward(y, x)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=lambda d: d.__name__)
def test_outliers_among_16_bit_values(rng, dtype):
    """Two of the three values that pilots are chosen from: the tile has to be looked at again."""
    x = rng.normal(size=(131, 37, 2, 2))
    x[[0, -1]] += 2000.0
    x = x.astype(dtype)
    y, saved = bnext.batch_norm_forward(x)
    expected = reference.moments(x)
    np.testing.assert_allclose(saved.mean, expected.mean, rtol=2.0**-20)
    np.testing.assert_allclose(saved.m2, expected.m2, rtol=2.0**-18)
    assert_is_rounded(y, reference.forward(x), "y")


def test_means_of_16_bit_data_are_nearly_exact(rng):
    """Differences from a value of the data's own type are: the mean is better than in float32."""
    x = (rng.normal(size=(301, 67, 3, 3)) + rng.uniform(-2, 2, (67, 1, 1))).astype(
        ml_dtypes.bfloat16
    )
    expected = reference.moments(x)
    off = np.abs(bnext.moments(x).mean - expected.mean) / np.sqrt(expected.var)
    assert off.max() < 2.0**-26
