"""The layers: parameters, running statistics, modes, and what an error leaves alone."""

import copy
import inspect
import pickle

import numpy as np
import pytest

import bnext

from . import reference
from .cases import Memory
from .compare import (
    assert_are_constant_gradients,
    assert_are_gradients,
    assert_is_forward,
    assert_is_y,
    assert_same_bits,
)
from .numerical import numerical_gradient
from .snapshots import assert_unchanged, layer_state, snapshot
from .tolerances import FINITE_DIFFERENCE

LAYERS = [bnext.BatchNorm, bnext.BatchNorm1d, bnext.BatchNorm2d, bnext.BatchNorm3d]
SHAPES = [
    (bnext.BatchNorm, (7, 5, 3, 2, 2, 3)),
    (bnext.BatchNorm1d, (19, 5)),
    (bnext.BatchNorm1d, (7, 5, 11)),
    (bnext.BatchNorm2d, (3, 5, 7, 9)),
    (bnext.BatchNorm3d, (2, 5, 3, 7, 5)),
]


def randomize(bn, rng):
    """Parameters and running statistics as after some training."""
    channels = bn.num_features
    bn.weight[...] = rng.uniform(0.5, 2, channels)
    bn.bias[...] = rng.normal(size=channels)
    bn.running_mean[...] = rng.normal(size=channels)
    bn.running_var[...] = rng.uniform(0.5, 2, channels)
    return bn


@pytest.mark.parametrize("layer", LAYERS)
def test_constructor_is_torch_s(layer):
    parameters = list(inspect.signature(layer).parameters.values())
    assert [(p.name, p.default) for p in parameters] == [
        ("num_features", inspect.Parameter.empty), ("eps", 1e-5), ("momentum", 0.1),
        ("affine", True), ("track_running_stats", True), ("channel_axis", 1),
        ("dtype", np.float32), ("group", None), ("parameter_gradients", "local"),
        ("decay", None), ("estimator", None), ("activation", None), ("negative_slope", 0.01),
        ("in_place", False), ("ghost_batch_size", None), ("skip_nonfinite", False),
    ]  # fmt: skip
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[5:])


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda bn: pickle.loads(pickle.dumps(bn))]
)
def test_copies_have_had_no_call(rng, copied):
    bn = bnext.BatchNorm1d(5)
    x = rng.normal(size=(4, 5)).astype(np.float32)
    bn(x)
    other = copied(bn)
    for name, value in bn.state_dict().items():
        assert_same_bits(getattr(other, name), value, name)
    with pytest.raises(RuntimeError, match="expected a forward call before it"):
        other.backward(x)
    assert_same_bits(other(x), bn(x))
    bn.backward(x)


@pytest.mark.parametrize("layer", LAYERS)
def test_initial_state(layer, dtype):
    bn = layer(5, dtype=dtype)
    assert (bn.num_features, bn.eps, bn.momentum, bn.training) == (5, 1e-5, 0.1, True)
    for name, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
        assert_same_bits(getattr(bn, name), np.full(5, value, dtype), name)
    assert_same_bits(bn.num_batches_tracked, np.array(0, np.int64))
    assert bn.weight_grad is None
    assert bn.bias_grad is None


def test_what_is_not_asked_for_is_none():
    bn = bnext.BatchNorm2d(5, affine=False, track_running_stats=False)
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        assert getattr(bn, name) is None, name


@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize(("layer", "shape"), SHAPES)
def test_training_step(rng, dtype, layer, shape):
    bn = randomize(layer(5, dtype=dtype), rng)
    running = bn.running_mean.copy(), bn.running_var.copy()
    x, dy = rng.normal(1, 2, (2, *shape)).astype(dtype)
    assert_is_forward(bn(x), x, bn.weight, bn.bias)
    expected = reference.update_running(running, reference.moments(x), 0.1)
    for actual, value in zip((bn.running_mean, bn.running_var), expected, strict=True):
        assert actual.dtype == dtype
        np.testing.assert_allclose(actual, value, rtol=0, atol=4 * np.finfo(dtype).eps)
    assert bn.num_batches_tracked == 1

    dx = bn.backward(dy)
    assert_are_gradients((dx, bn.weight_grad, bn.bias_grad), dy, x, bn.weight)


@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize(("layer", "shape"), SHAPES)
def test_evaluation_step(rng, dtype, layer, shape):
    bn = randomize(layer(5, dtype=dtype), rng).eval()
    before = snapshot(layer_state(bn))
    x, dy = rng.normal(1, 2, (2, *shape)).astype(dtype)
    assert_is_y(bn(x), x, bn.running_mean, bn.running_var, bn.weight, bn.bias)
    assert_unchanged(layer_state(bn), before)
    dx = bn.backward(dy)
    assert_are_constant_gradients(
        (dx, bn.weight_grad, bn.bias_grad), dy, x, bn.running_mean, bn.running_var, bn.weight
    )
    for name in ("running_mean", "running_var", "num_batches_tracked", "weight", "bias"):
        assert_same_bits(getattr(bn, name), before[name], name)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("training", [True, False])
def test_without_running_statistics_the_batch_s_are_used(rng, dtype, training):
    bn = bnext.BatchNorm2d(5, track_running_stats=False, dtype=dtype).train(training)
    x, dy = rng.normal(1, 2, (2, 3, 5, 7, 9)).astype(dtype)
    assert_is_forward(bn(x), x)
    assert_are_gradients((bn.backward(dy), bn.weight_grad, bn.bias_grad), dy, x)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("training", [True, False])
def test_gradients_agree_with_finite_differences(rng, training):
    x, dy = rng.normal(size=(2, 3, 2, 2, 2))
    bn = randomize(bnext.BatchNorm2d(2, dtype=np.float64), rng).train(training)

    values = {"x": x, "weight": bn.weight.copy(), "bias": bn.bias.copy()}

    def loss(name):
        def of(varied):
            given = values | {name: varied}
            bn.weight[...], bn.bias[...] = given["weight"], given["bias"]
            return (dy * bn(given["x"])).sum()

        return of

    # In training mode the running statistics move with every call, which changes no output.
    expected = {name: numerical_gradient(loss(name), value) for name, value in values.items()}
    loss("x")(x)
    actual = {"x": bn.backward(dy), "weight": bn.weight_grad, "bias": bn.bias_grad}
    for name, value in expected.items():
        allowed = FINITE_DIFFERENCE * np.abs(value).max()
        np.testing.assert_allclose(actual[name], value, atol=allowed, err_msg=name)


@pytest.mark.parametrize("momentum", [0.0, 0.1, 0.5, 1.0])
def test_running_average(rng, dtype, momentum):
    bn = bnext.BatchNorm1d(4, momentum=momentum, dtype=dtype)
    running = np.zeros(4), np.ones(4)
    for step in range(1, 6):
        x = rng.normal(step, step, (10, 4)).astype(dtype)
        bn(x)
        running = reference.update_running(running, reference.moments(x), momentum)
        np.testing.assert_allclose(bn.running_mean, running[0], rtol=0, atol=step * 1e-6)
        np.testing.assert_allclose(bn.running_var, running[1], rtol=1e-6)
        assert bn.num_batches_tracked == step


def test_cumulative_average(rng, dtype):
    bn = bnext.BatchNorm1d(4, momentum=None, dtype=dtype)
    batches = rng.normal(3, 2, (6, 10, 4)).astype(dtype)
    for x in batches:
        bn(x)
    means, variances = batches.astype(np.float64).mean(1), batches.astype(np.float64).var(1, ddof=1)
    np.testing.assert_allclose(bn.running_mean, means.mean(0), rtol=1e-5)
    np.testing.assert_allclose(bn.running_var, variances.mean(0), rtol=1e-5)


@pytest.mark.parametrize("channel_axis", [-1, 1, 0, 3])
def test_channel_axis(rng, dtype, channel_axis):
    shape = (4, 6, 5, 7)
    bn = bnext.BatchNorm2d(shape[channel_axis], channel_axis=channel_axis, dtype=dtype)
    x, dy = rng.normal(size=(2, *shape)).astype(dtype)
    assert_is_forward(bn(x), x, channel_axis=channel_axis)
    gradients = bn.backward(dy), bn.weight_grad, bn.bias_grad
    assert_are_gradients(gradients, dy, x, channel_axis=channel_axis)


def test_outputs_of_the_caller_s(rng, dtype):
    bn = bnext.BatchNorm2d(5, dtype=dtype)
    x, dy = rng.normal(size=(2, 3, 5, 4, 7)).astype(dtype)
    memory = Memory(order=(0, 2, 3, 1), margins={1: (1, 2)})
    _, out = memory.allocate(x.shape, dtype)
    _, dx = memory.allocate(x.shape, dtype)
    assert bn(x, out=out) is out
    assert_is_forward(out, x)
    assert bn.backward(dy, out=dx) is dx
    assert_are_gradients((dx, bn.weight_grad, bn.bias_grad), dy, x)
    assert_same_bits(bn.forward(x), bnext.batch_norm_forward(x, bn.weight, bn.bias)[0])


def test_gradients_are_replaced_not_added(rng):
    bn = bnext.BatchNorm1d(4)
    x, dy = rng.normal(size=(2, 10, 4)).astype(np.float32)
    results = []
    for _ in range(2):
        bn(x)
        bn.backward(dy)
        results.append(bn.weight_grad.copy())
    assert_same_bits(results[1], results[0])


def test_without_parameters_there_are_no_parameter_gradients(rng):
    bn = bnext.BatchNorm1d(4, affine=False)
    x, dy = rng.normal(size=(2, 10, 4)).astype(np.float32)
    bn(x)
    dx = bn.backward(dy)
    _, saved = bnext.batch_norm_forward(x)
    assert_same_bits(dx, bnext.batch_norm_backward(dy, x, saved)[0])
    assert bn.weight_grad is None
    assert bn.bias_grad is None


def test_modes():
    bn = bnext.BatchNorm2d(3)
    assert bn.eval() is bn
    assert bn.training is False
    assert bn.train() is bn
    assert bn.training is True
    assert bn.train(False).training is False


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (bnext.BatchNorm1d, (0, 5)),
        (bnext.BatchNorm2d, (0, 5, 3, 3)),
        (bnext.BatchNorm2d, (4, 5, 0, 3)),
    ],
)
def test_empty_batch(rng, momentum, layer, shape):
    bn = randomize(layer(5, momentum=momentum), rng)
    running = bn.running_mean.copy(), bn.running_var.copy()
    y = bn(np.empty(shape, np.float32))
    assert y.shape == shape
    assert bn.num_batches_tracked == 1
    assert_same_bits(bn.running_mean, running[0])
    assert_same_bits(bn.running_var, running[1])
    assert bn.backward(np.empty(shape, np.float32)).shape == shape
    assert bn.weight_grad.tolist() == bn.bias_grad.tolist() == [0.0] * 5


def test_no_features():
    bn = bnext.BatchNorm2d(0)
    assert bn(np.empty((3, 0, 2, 2), np.float32)).shape == (3, 0, 2, 2)
    assert bn.backward(np.empty((3, 0, 2, 2), np.float32)).shape == (3, 0, 2, 2)


def test_reset(rng):
    bn = randomize(bnext.BatchNorm2d(5), rng)
    bn(rng.normal(size=(3, 5, 2, 2)).astype(np.float32))
    weight = bn.weight.copy()
    bn.reset_running_stats()
    assert_same_bits(bn.weight, weight)
    assert bn.running_mean.tolist() == [0.0] * 5
    assert bn.running_var.tolist() == [1.0] * 5
    assert_same_bits(bn.num_batches_tracked, np.array(0, np.int64))
    bn.running_mean[...] = 3
    bn.reset_parameters()
    assert bn.weight.tolist() == [1.0] * 5
    assert bn.bias.tolist() == bn.running_mean.tolist() == [0.0] * 5


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "eps=1e-05, momentum=0.1, affine=True, track_running_stats=True"),
        (
            {"eps": 0.001, "momentum": None, "affine": False, "track_running_stats": False},
            "eps=0.001, momentum=None, affine=False, track_running_stats=False",
        ),
        (
            {"channel_axis": -1, "dtype": np.float64},
            "eps=1e-05, momentum=0.1, affine=True, track_running_stats=True, "
            "channel_axis=-1, dtype=float64",
        ),
    ],
)
@pytest.mark.parametrize("layer", LAYERS)
def test_repr(layer, options, text):
    assert repr(layer(64, **options)) == f"{layer.__name__}(64, {text})"
