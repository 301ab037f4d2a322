"""An activation and a residual of data at the ends of float32's range, and far from 0."""

import ml_dtypes
import numpy as np
import pytest

from .cases import Case
from .compare import assert_same_bits
from .epilogues import Expected, both_passes, drawn
from .sixteen import name_of
from .test_extremes import mixed

F4, BF = np.float32, ml_dtypes.bfloat16
CASES = [
    Case("planes", (5, 14, 7, 7)),
    Case("small-planes", (33, 21, 2, 2)),
    Case("rows", (67, 21)),
    Case("interleaved", (3, 5, 7, 35), channel_axis=-1),
]
NAMES = ["relu", "leaky_relu", "gelu", "tanh"]

pytestmark = [
    pytest.mark.usefixtures("isa"),
    pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"]),
    pytest.mark.parametrize("name", NAMES),
    pytest.mark.parametrize("case", CASES, ids=str),
]


@pytest.mark.parametrize("dtype", [F4, BF], ids=name_of)
def test_channels_of_all_sizes_side_by_side(rng, case, name, residual, dtype):
    """From 1e-36 to 3.3e38, and constant ones; each as good as if it were alone."""
    x, _ = mixed(case, rng, dtype)
    dy = case.dy(rng, dtype)
    inputs = drawn(rng, case, dtype, name, residual, eps=0.0, data=(x, dy))
    Expected(inputs, eps=0.0).assert_are_results(both_passes(inputs, eps=0.0))


def test_sums_that_leave_float32_s_range(rng, case, name, residual):
    """dy of 1e38: sums are infinities in float32, and dx is not."""
    x = case.x(rng, BF)
    x[...] = (x.astype(np.float64) * 1e20).astype(BF)
    dy = (case.dy(rng, np.float64) * 5e37).astype(BF)
    inputs = drawn(rng, case, BF, name, residual, data=(x, dy))
    results = both_passes(inputs)
    Expected(inputs).assert_are_results(results)
    assert np.isinf(results.dbias).any()


@pytest.mark.parametrize("ratio", [1e3, 1e6])
def test_a_mean_far_from_zero(rng, case, name, residual, ratio):
    x = (case.x(rng, np.float64) + ratio).astype(F4)
    inputs = drawn(rng, case, F4, name, residual, data=(x, case.dy(rng, F4)))
    Expected(inputs).assert_are_results(both_passes(inputs))


def test_ordinary_channels_have_the_bits_that_they_have_alone(rng, case, name, residual):
    """Beside extreme ones."""
    x, _ = mixed(case, rng, F4)
    inputs = drawn(rng, case, F4, name, residual, eps=0.0, data=(x, case.dy(rng, F4)))
    axis = case.channel_axis
    ordinary = np.arange(0, case.channels, 7)
    others = np.setdiff1d(np.arange(case.channels), ordinary)
    calm = x.copy()
    rows = np.moveaxis(calm, axis, 0)
    rows[others] = rows[0]
    results = both_passes(inputs, eps=0.0)
    alone = both_passes(inputs._replace(x=calm), eps=0.0)
    for actual, expected in zip(results, alone, strict=True):
        if actual is None:
            continue
        along = axis if actual.ndim > 1 else 0
        assert_same_bits(
            np.ascontiguousarray(actual.take(ordinary, along)),
            np.ascontiguousarray(expected.take(ordinary, along)),
        )
