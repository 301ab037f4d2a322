"""Norms of examples by the emulated kernels, of data at the ends: outliers, constants, nothing."""

import itertools

import numpy as np
import pytest

from ..norms import (
    CENTERED,
    DATA,
    UNIT,
    Cells,
    Rows,
    check_close,
    drawn,
    forward,
    param,
)
from .norms import HERE

pytestmark = pytest.mark.usefixtures("emulated")
F4 = np.float32


@pytest.mark.parametrize("index", [0, 50, 99])
def test_one_outlier_is_no_pilot(index, rng):
    inputs = drawn(rng, Rows(), (4, 100))._replace(weight=None, bias=None)
    inputs.x[...] = rng.standard_normal((4, 100))
    inputs.x[:, index] += 1e4
    results, of = HERE.both(inputs, eps=0.0), inputs.norm.of_rows(inputs.x, 0)
    check_close(results.y, of.y, 4 * UNIT[F4])
    rstd = results.saved.rstd.values
    np.testing.assert_allclose(rstd, of.rstd[:, 0].astype(float), rtol=1e-6)


@CENTERED
def test_gradients_at_the_upper_end_of_float32(centered, rng):
    """Sums of what a thread has leave float32's range, and the row's sums do not."""
    inputs = drawn(rng, Rows(1, centered), (3, 64))._replace(weight=None, bias=None)
    inputs.x[...] = rng.standard_normal((3, 64))
    inputs.dy[...] = rng.choice([-1.0, 1.0], (3, 64)) * 3e38
    expected = inputs.norm.expected(inputs, eps=1e10)
    check_close(HERE.both(inputs, eps=1e10).dx, expected.dx, 8 * UNIT[F4])


@pytest.mark.usefixtures("by_cells")
def test_a_mean_far_from_zero(rng):
    """Nothing cancels: neither in a cell nor between the cells of a slab."""
    for layout, groups in itertools.product(("planar", "interleaved"), (6, 3)):
        inputs = drawn(rng, Cells(groups), (2, 6, 9, 11), layout=layout)
        inputs = inputs._replace(weight=None, bias=None)
        far = 1e6 * (1 + np.arange(6)[:, None, None])
        inputs.x[...] = rng.standard_normal((2, 6, 9, 11)) + far
        results = HERE.both(inputs)
        saved, slabs = results.saved, inputs.x.astype(np.longdouble).reshape(2, groups, -1)
        mean, var = slabs.mean(axis=2), slabs.var(axis=2)
        np.testing.assert_allclose(saved.mean.values, mean.astype(float), rtol=1e-9)
        np.testing.assert_allclose(saved.var.values, var.astype(float), rtol=1e-5)
        expected = inputs.norm.expected(inputs).y
        assert np.abs(results.y - expected).max() < (1e-4 if groups == 6 else 1e-5)
        assert np.isfinite(results.dx).all()


@pytest.mark.usefixtures("by_cells")
def test_constant_slabs_have_no_variance(rng):
    for layout, groups in itertools.product(("planar", "interleaved"), (1, 2, 6)):
        inputs = drawn(rng, Cells(groups), (2, 6, 7, 5), layout=layout)
        inputs = inputs._replace(weight=None, bias=None)
        inputs.x[...] = inputs.dy[...] = 0.1
        results = HERE.both(inputs)
        assert not results.saved.m2.values.any()
        assert not results.y.any()


@DATA
@pytest.mark.usefixtures("by_cells")
def test_small_weights_in_a_group(rng, dtype):
    """Weights of 0, and far below the others, beside large ones."""
    inputs = drawn(rng, Cells(2), (2, 8, 3, 5), dtype)
    inputs.weight[:] = (0, 1e-30, -0.0, 1, 2, -1e-38, 1, 0)
    inputs.norm.assert_are_right(HERE.both(inputs), inputs, HERE)
    assert not HERE.both(inputs._replace(weight=0 * inputs.weight)).dx.any()


@DATA
@pytest.mark.parametrize("shape", [(0, 6, 3, 5), (2, 6, 0, 5), (0, 6)], ids=str)
def test_empty_cells_are_the_cpus(rng, shape, dtype):
    inputs = drawn(rng, Cells(3), shape, dtype)
    results, (_, on_the_cpu) = HERE.both(inputs), forward(inputs)
    assert results.y.shape == results.dx.shape == shape
    assert results.y.dtype == inputs.x.dtype
    np.testing.assert_array_equal(results.saved.rows.values, on_the_cpu.rows)
    assert results.saved.count == on_the_cpu.count
    assert results.dweight.dtype == param(dtype)
    assert not results.dweight.any()
    assert not results.dbias.any()
