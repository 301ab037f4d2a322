"""On a GPU: group and instance normalization over dtypes, layouts and paths."""

import ml_dtypes
import numpy as np
import pytest

import bnext

from .. import cell_reference as reference
from ..test_group_norm import DTYPES, DX, PARAMETERS, UNIT, Y, assert_close, data, param
from . import gpu

pytestmark = pytest.mark.gpu

# What a stage of ResNet-50 has, few large slabs, many small ones, odd extents, rows.
SHAPES = (
    ((8, 256, 56, 56), 32), ((8, 2048, 7, 7), 32), ((2, 32, 64, 64, 32), 32), ((64, 20), 4),
    ((1, 4, 520, 521), 1), ((33, 30, 9, 7), 5), ((257, 48, 3), 48), ((3, 6000, 2, 2), 2),
)  # fmt: skip
BY_NAME = pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: np.dtype(t).name)


def both(library, values, groups, **options):
    """Results of both passes, fetched; `saved` behind y."""
    x, dy, weight, bias = (library.put(each) for each in values)
    y, saved = bnext.group_norm_forward(x, groups, weight, bias, **options)
    gradients = bnext.group_norm_backward(dy, x, saved, weight)
    return library.get(y), saved, *(library.get(each) for each in gradients)


def skip_what_cannot_be(library, dtype):
    if library.name == "cupy" and dtype is ml_dtypes.bfloat16:
        pytest.skip("CuPy has no bfloat16")


def assert_are_right(library, results, values, groups):
    x, dy, weight, bias = values
    y, saved, dx, dweight, dbias = results
    dtype = x.dtype.type
    expected, mean, var = reference.group_norm(x, groups, weight, bias)
    gradients = reference.group_norm_backward(dy, x, groups, weight)
    unit = UNIT[dtype]
    assert_close(y, expected, Y[dtype] + 1, unit, groups, beside=1)
    terms = np.abs(dy * weight.reshape(-1, *(1,) * (x.ndim - 2)))
    terms = terms.reshape(x.shape[0], groups, -1).max(axis=2) / np.sqrt(var + 1e-5)
    assert_close(dx, gradients[0], DX[dtype] + 1, unit, groups, beside=terms[..., None])
    count = x.size / x.shape[1]
    of_sums = UNIT[param(dtype)] * PARAMETERS[dtype] * np.sqrt(count)
    near = of_sums if dtype in (np.float32, np.float64) else max(of_sums, 2**-18)
    for got, wanted in zip((dweight, dbias), gradients[1:], strict=True):
        assert np.all(np.abs(got - wanted) <= near * (np.sqrt(count) + np.abs(wanted)))
    assert saved.count == x[0].size // groups
    near = 1e-12 if dtype is np.float64 else 1e-5
    assert np.all(np.abs(library.get(saved.mean) - mean) <= near * np.sqrt(var + 1e-3))
    assert np.all(np.abs(library.get(saved.var) - var) <= near * (var + 1e-3))


@BY_NAME
@pytest.mark.parametrize("layout", ["planar", "interleaved", "channels", "examples"])
@pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=str)
def test_every_layout(library, shape, groups, layout, dtype, rng):
    skip_what_cannot_be(library, dtype)
    values = data(rng, shape, dtype, layout)
    assert_are_right(library, both(library, values, groups), values, groups)


@pytest.mark.parametrize("path", gpu.PATHS)
@pytest.mark.parametrize("layout", ["planar", "interleaved"])
@pytest.mark.parametrize("channels", [4, 64])
def test_every_path_of_instance_norm(library, channels, layout, path, rng):
    """A second call has the same bits."""
    values = data(rng, (3, channels, 130, 66), np.float32, layout)
    results = gpu.forced(path, lambda: both(library, values, channels))
    assert_are_right(library, results, values, channels)
    again = gpu.forced(path, lambda: both(library, values, channels))
    for first, second in zip(results[::2], again[::2], strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("layout", ["planar", "interleaved"])
@pytest.mark.parametrize("groups", [4, 32])
def test_a_call_gives_the_same_bits_every_time(library, groups, layout, rng):
    values = data(rng, (8, 32, 61, 64), np.float32, layout)
    first = both(library, values, groups, activation="silu")
    for _ in range(5):
        again = both(library, values, groups, activation="silu")
        for one, other in zip(first[2:], again[2:], strict=True):
            np.testing.assert_array_equal(one, other)


def test_layers_of_tensors_are_pytorchs(tensors):
    """And so are modules, with what autograd makes of them; the running statistics move alike."""
    torch = tensors.xp
    for shape in ((16, 32, 20, 21), (16, 32, 700)):
        norms = [
            (bnext.torch.GroupNorm(8, 32, device=gpu.DEVICE), torch.nn.GroupNorm(8, 32)),
            (
                getattr(bnext.torch, f"InstanceNorm{len(shape) - 2}d")(
                    32, affine=True, track_running_stats=True, device=gpu.DEVICE
                ),
                getattr(torch.nn, f"InstanceNorm{len(shape) - 2}d")(
                    32, affine=True, track_running_stats=True
                ),
            ),
        ]
        for ours, theirs in norms:
            x, dy = (torch.randn(shape) for _ in range(2))
            found = []
            for norm, device in ((ours, gpu.DEVICE), (theirs, "cpu")):
                leaf = x.to(device).requires_grad_()
                y = norm(leaf)
                y.backward(dy.to(device))
                values = [y.detach(), leaf.grad, *(p.grad for p in norm.parameters())]
                found.append([each.cpu() for each in (*values, *norm.buffers())])
            torch.testing.assert_close(*found, rtol=2e-4, atol=2e-4)
