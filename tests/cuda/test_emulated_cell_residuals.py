"""Group and instance normalization with a residual on a GPU, without one: emulated kernels."""

import ml_dtypes
import numpy as np
import pytest

import bnext

from .. import cell_reference as reference
from ..activations import ACTIVATIONS, SLOPE
from ..fake_cuda import Array
from ..optional import import_emulated
from ..test_group_norm import data
from . import gpu

MODULE = import_emulated()
# Slabs that a team of threads holds, and a longer one; groups of channels, and one for each.
SHAPES = (((3, 6, 5, 8), 2), ((3, 6, 5, 8), 6), ((2, 4, 33, 67), 2), ((2, 3, 4099), 3))


@pytest.fixture(autouse=True)
def emulated(monkeypatch):
    monkeypatch.setattr(bnext.cuda, "_load", lambda: MODULE)


def both_there(x, dy, groups, weight, bias, residual, activation):
    """y, dx, dweight, dbias, dresidual in NumPy arrays."""
    x, dy, weight, bias, residual = (Array(each) for each in (x, dy, weight, bias, residual))
    options = {"residual": residual, "activation": activation, "negative_slope": SLOPE}
    if groups == x.shape[1]:
        y, saved = bnext.instance_norm_forward(x, weight, bias, **options)
        backward = bnext.instance_norm_backward
    else:
        y, saved = bnext.group_norm_forward(x, groups, weight, bias, **options)
        backward = bnext.group_norm_backward
    assert saved.reads_residual == (activation is not None)
    again = residual if saved.reads_residual else None
    return [each.values for each in (y, *backward(dy, x, saved, weight, residual=again))]


def drawn(rng, shape, dtype, layout):
    x, dy, weight, bias = data(rng, shape, dtype, layout)
    residual = np.empty_like(x)
    residual[...] = rng.standard_normal(shape)
    return x, dy, weight, bias, residual


def expected_of(x, dy, groups, weight, bias, residual, activation):
    """By the definition, in float64."""
    z = np.asarray(reference.group_norm(x, groups, weight, bias)[0], np.float64) + residual
    value = z if activation is None else ACTIVATIONS[activation].value(z)
    g = dy * (1.0 if activation is None else ACTIVATIONS[activation].derivative(z))
    gradients = reference.group_norm_backward(g, x, groups, weight)
    return [np.asarray(each, np.float64) for each in (value, *gradients, g)]


@pytest.mark.parametrize("layout", ["planar", "interleaved"])
@pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=str)
@pytest.mark.parametrize("name", [None, *ACTIVATIONS])
def test_both_passes(rng, name, shape, groups, layout):
    x, dy, weight, bias, residual = drawn(rng, shape, np.float64, layout)
    results = both_there(x, dy, groups, weight, bias, residual, name)
    expected = expected_of(x, dy, groups, weight, bias, residual, name)
    for actual, wanted in zip(results, expected, strict=True):
        largest = np.abs(wanted).max()
        np.testing.assert_allclose(actual, wanted, rtol=1e-9, atol=1e-11 * largest)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", [None, "relu", "gelu"])
def test_dtypes_have_the_results_of_the_cpu(rng, name, dtype):
    """To the roundings of z: away from the kink of ReLU."""
    x, dy, weight, bias, residual = drawn(rng, (3, 6, 5, 7), dtype, "planar")
    z = bnext.group_norm_forward(x, 2, weight, bias, residual=residual)[0].astype(np.float64)
    residual = np.where(np.abs(z) < 0.1, dtype(4), residual)
    there = both_there(x, dy, 2, weight, bias, residual, name)
    y, saved = bnext.group_norm_forward(x, 2, weight, bias, residual=residual, activation=name)
    again = residual if saved.reads_residual else None
    here = y, *bnext.group_norm_backward(dy, x, saved, weight, residual=again)
    near = {np.float32: 2e-5, np.float16: 4e-3}.get(dtype, 3e-2)
    for actual, expected in zip(there, here, strict=True):
        assert actual.dtype == expected.dtype
        actual, expected = actual.astype(np.float64), expected.astype(np.float64)
        np.testing.assert_allclose(actual, expected, atol=near * np.abs(expected).max())


@pytest.mark.parametrize("path", gpu.PATHS)
def test_every_path(rng, path):
    x, dy, weight, bias, residual = drawn(rng, (2, 3, 4099), np.float64, "planar")
    results, refusal = gpu.results_or_refusal(
        path, lambda: both_there(x, dy, 3, weight, bias, residual, "silu")
    )
    if refusal is not None:
        assert path != "two_kernels"
        return
    expected = expected_of(x, dy, 3, weight, bias, residual, "silu")
    for actual, wanted in zip(results, expected, strict=True):
        largest = np.abs(wanted).max()
        np.testing.assert_allclose(actual, wanted, rtol=1e-9, atol=1e-11 * largest)


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("kind", ["group", "instance"])
def test_layers(rng, kind, activation):
    x, dy, weight, bias, residual = drawn(rng, (3, 6, 5, 7), np.float32, "planar")
    layer = (
        bnext.GroupNorm(3, 6, activation=activation)
        if kind == "group"
        else bnext.InstanceNorm2d(6, affine=True, activation=activation)
    )
    layer.weight[...], layer.bias[...] = weight, bias
    here = layer(x, residual=residual), *layer.backward(dy), layer.weight_grad
    layer.to(Array(np.empty(0)))
    there = layer(Array(x), residual=Array(residual)), *layer.backward(Array(dy)), layer.weight_grad
    assert len(there) == 4
    for actual, expected in zip(there, here, strict=True):
        np.testing.assert_allclose(actual.values, expected, rtol=2e-5, atol=2e-5)


def test_a_residual_that_is_missing_or_elsewhere(rng):
    x, dy, _, _, residual = drawn(rng, (3, 6, 5, 7), np.float32, "planar")
    there = Array(x)
    with pytest.raises(TypeError, match="residual: expected an array on cuda:0"):
        bnext.group_norm_forward(there, 3, residual=residual)
    _, saved = bnext.group_norm_forward(there, 3, residual=Array(residual), activation="relu")
    with pytest.raises(ValueError, match="residual: expected the forward call's"):
        bnext.group_norm_backward(Array(dy), there, saved)
