"""The layers beside torch.nn.BatchNorm1d, 2d and 3d: outputs, gradients, buffers and errors."""

import re

import numpy as np
import pytest

import bnext

from . import reference
from .compare import largest
from .sixteen import TYPES, units
from .sixteen import name_of as name_of_16bit
from .tolerances import TORCH

pytestmark = pytest.mark.torch

SHAPES = [(16, 5), (7, 5, 11), (3, 5, 7, 9), (2, 5, 3, 7, 5), (1, 5, 4, 1)]


def name_of(shape):
    return f"BatchNorm{max(len(shape) - 2, 1)}d"


def tensor_of(array):
    import torch

    return torch.tensor(array)


def pair(shape, dtype, rng, **options):
    """Our layer and torch's, with the same random parameters and statistics."""
    import torch

    ours = getattr(bnext, name_of(shape))(5, dtype=dtype, **options)
    theirs = getattr(torch.nn, name_of(shape))(
        5, dtype=getattr(torch, np.dtype(dtype).name), **options
    )
    values = {
        "weight": rng.uniform(0.5, 2, 5), "bias": rng.normal(size=5),
        "running_mean": rng.normal(size=5), "running_var": rng.uniform(0.5, 2, 5),
    }  # fmt: skip
    for name, value in values.items():
        if getattr(ours, name) is not None:
            getattr(ours, name)[...] = value
            getattr(theirs, name).data[...] = tensor_of(getattr(ours, name))
    return ours, theirs


def assert_close(actual, expected, what, scale=1.0):
    """Equal up to roundings at `scale` or at the largest magnitude, whichever is more."""
    expected = expected.detach().numpy()
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    unit = np.finfo(expected.dtype).eps * np.abs(expected).max(initial=scale)
    allowed = TORCH[expected.dtype.type] * unit
    np.testing.assert_allclose(actual, expected, rtol=0, atol=allowed, err_msg=what)


def assert_same_buffers(ours, theirs):
    for name in ("running_mean", "running_var"):
        if getattr(theirs, name) is None:
            assert getattr(ours, name) is None
        else:
            assert_close(getattr(ours, name), getattr(theirs, name), name)
    if theirs.num_batches_tracked is None:
        assert ours.num_batches_tracked is None
    else:
        assert ours.num_batches_tracked == theirs.num_batches_tracked.item()


def step(ours, theirs, x, dy):
    """Forward and backward in both, everything compared."""
    batch = theirs.training or theirs.running_var is None
    var = reference.moments(x).var if batch else theirs.running_var.numpy()
    rstd = reference.rstd(var, theirs.eps).max()
    weight = 1.0 if theirs.weight is None else np.abs(ours.weight).max()
    of_y = rstd * weight * np.abs(x).max(initial=0.0)
    of_dx = rstd * weight * np.abs(dy).max(initial=0.0)
    of_dweight = rstd * np.abs(x).max(initial=0.0) * np.sqrt(dy.size)

    leaf = tensor_of(x).requires_grad_()
    theirs.zero_grad()
    expected = theirs(leaf)
    expected.backward(tensor_of(dy))
    assert_close(ours(x), expected, "y", of_y)
    assert_close(ours.backward(dy), leaf.grad, "dx", of_dx)
    if theirs.affine:
        assert_close(ours.weight_grad, theirs.weight.grad, "weight_grad", of_dweight)
        assert_close(ours.bias_grad, theirs.bias.grad, "bias_grad", np.sqrt(dy.size))
    assert_same_buffers(ours, theirs)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("tracked", [True, False], ids=["tracked", "untracked"])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_training_then_evaluation(rng, dtype, shape, affine, tracked, momentum):
    options = {"affine": affine, "track_running_stats": tracked, "momentum": momentum}
    ours, theirs = pair(shape, dtype, rng, **options)
    for _ in range(3):
        step(ours, theirs, *rng.normal(1, 2, (2, *shape)).astype(dtype))
    ours.eval()
    theirs.eval()
    for _ in range(2):
        step(ours, theirs, *rng.normal(1, 2, (2, *shape)).astype(dtype))
    ours.train()
    theirs.train()
    step(ours, theirs, *rng.normal(1, 2, (2, *shape)).astype(dtype))


@pytest.mark.parametrize(
    "options", [{"eps": 1e-3}, {"eps": 1.0}, {"momentum": 0.0}, {"momentum": 1.0}]
)
@pytest.mark.parametrize("training", [True, False])
def test_options(rng, dtype, options, training):
    ours, theirs = pair((3, 5, 7, 9), dtype, rng, **options)
    ours.train(training)
    theirs.train(training)
    for _ in range(2):
        step(ours, theirs, *rng.normal(1, 2, (2, 3, 5, 7, 9)).astype(dtype))


@pytest.mark.parametrize("shape", [(0, 5), (0, 5, 11), (0, 5, 7, 9), (3, 5, 0, 9)], ids=str)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_empty_batch(rng, dtype, shape, momentum):
    ours, theirs = pair(shape, dtype, rng, momentum=momentum)
    for _ in range(2):
        step(ours, theirs, np.empty(shape, dtype), np.empty(shape, dtype))
    assert ours.num_batches_tracked == 2


@pytest.mark.parametrize("shape", [(1, 5), (1, 5, 1), (1, 5, 1, 1)], ids=str)
def test_single_values(rng, dtype, shape):
    ours, theirs = pair(shape, dtype, rng)
    x = rng.normal(size=shape).astype(dtype)
    with pytest.raises(ValueError, match="more than 1 value") as expected:
        theirs(tensor_of(x))
    with pytest.raises(ValueError, match="more than 1 value") as actual:
        ours(x)
    size = f"torch.Size({list(shape)})"
    assert str(actual.value) == str(expected.value).replace(size, str(shape))
    # torch has counted the batch by then; an error of ours changes nothing.
    assert ours.num_batches_tracked == 0
    step(ours.eval(), _counted_none(theirs.eval()), x, x)


def _counted_none(theirs):
    theirs.num_batches_tracked.zero_()
    return theirs


@pytest.mark.parametrize("name", ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"])
@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5, 6])
def test_wrong_ranks(torch, name, rank):
    x = np.ones((5,) * rank, np.float32)
    results = []
    for layer in (getattr(bnext, name)(5), getattr(torch.nn, name)(5)):
        try:
            layer(x if isinstance(layer, bnext.BatchNorm) else tensor_of(x))
            results.append("accepted")
        except ValueError as error:
            results.append(str(error))
    assert results[0] == results[1]


@pytest.mark.parametrize("options", [{}, {"eps": 1e-3, "momentum": None, "affine": False}], ids=str)
@pytest.mark.parametrize("name", ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"])
def test_repr(torch, name, options):
    expected = repr(getattr(torch.nn, name)(5, **options))
    expected = re.sub(r"bias=\w+, ", "", expected)  # since 2.13; affine says it too
    assert repr(getattr(bnext, name)(5, **options)) == expected


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_a_number_reaches_the_same_places(rng, dtype, value):
    ours, theirs = pair((4, 5, 3, 3), dtype, rng)
    x = rng.normal(size=(4, 5, 3, 3)).astype(dtype)
    x[1, 2, 0, 1] = value
    expected = theirs(tensor_of(x)).detach().numpy()
    np.testing.assert_array_equal(np.isnan(ours(x)), np.isnan(expected))
    for name in ("running_mean", "running_var"):
        spoiled = ~np.isfinite(getattr(theirs, name).numpy())
        np.testing.assert_array_equal(~np.isfinite(getattr(ours, name)), spoiled)


@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize("memory_format", ["contiguous_format", "channels_last"])
def test_torch_s_memory_formats(torch, rng, dtype, memory_format):
    x = tensor_of(rng.normal(size=(3, 17, 7, 9)).astype(dtype))
    x = x.contiguous(memory_format=getattr(torch, memory_format))
    y, _ = bnext.batch_norm_forward(x.numpy())
    expected = torch.nn.functional.batch_norm(x, None, None, training=True)
    assert torch.from_numpy(y).stride() == expected.stride()
    assert_close(y, expected, "y")


def numpy_of(tensor):
    """A 16-bit tensor's values; NumPy knows bfloat16 by ml_dtypes only, so its bits cross."""
    import torch

    dtype = TYPES[tensor.dtype == torch.bfloat16]
    return tensor.detach().view(torch.int16).numpy().view(dtype)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", TYPES, ids=name_of_16bit)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("shape", [*SHAPES[:4], (64, 5, 14, 14)], ids=str)
def test_16_bits(torch, rng, dtype, training, shape):
    """Data of 16 bits under float32 parameters; y and dx within a unit in the last place."""
    ours, theirs = pair(shape, np.float32, rng)
    ours.train(training)
    theirs.train(training)
    kind = getattr(torch, name_of_16bit(dtype))
    leaf = torch.tensor(rng.normal(1, 2, shape)).to(kind).requires_grad_()
    dy = torch.tensor(rng.normal(size=shape)).to(kind)
    expected = theirs(leaf)
    expected.backward(dy)
    y = ours(numpy_of(leaf))
    dx = ours.backward(numpy_of(dy))
    for actual, tensor, what in ((y, expected, "y"), (dx, leaf.grad, "dx")):
        exact = reference.per_channel(numpy_of(tensor))
        off = np.abs(reference.per_channel(actual) - exact)
        assert actual.dtype == dtype
        assert (off <= units(largest(exact), dtype)[:, None]).all(), what
    assert_close(ours.weight_grad, theirs.weight.grad, "weight_grad", dy.numel())
    assert_close(ours.bias_grad, theirs.bias.grad, "bias_grad", dy.numel())
    assert_same_buffers(ours, theirs)
