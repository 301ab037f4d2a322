"""Layers of group and instance normalization: passes, running statistics, states, errors."""

import copy
import pickle

import numpy as np
import pytest

import bnext

from . import cell_reference as reference

INSTANCES = {
    bnext.InstanceNorm1d: (4, 6, 5), bnext.InstanceNorm2d: (4, 6, 5, 3),
    bnext.InstanceNorm3d: (4, 6, 5, 3, 2),
}  # fmt: skip
KINDS = pytest.mark.parametrize("kind", INSTANCES, ids=lambda kind: kind.__name__)


def data(rng, shape, dtype=np.float32):
    return (rng.standard_normal((2, *shape)) * 2 + 1).astype(dtype)


def filled(rng, layer):
    if layer.weight is not None:
        layer.weight[:] = rng.random(len(layer.weight)) + 0.5
        layer.bias[:] = rng.random(len(layer.bias))
    return layer


@pytest.mark.parametrize("affine", [True, False])
def test_group_norm(rng, affine):
    layer = filled(rng, bnext.GroupNorm(3, 6, affine=affine))
    x, dy = data(rng, (4, 6, 5, 3))
    for training in (True, False):
        layer.train(training)
        assert np.allclose(layer(x), reference.group_norm(x, 3, layer.weight, layer.bias)[0])
        expected = reference.group_norm_backward(dy, x, 3, layer.weight)
        assert np.allclose(layer.backward(dy), expected[0], atol=1e-5)
        gradients = (layer.weight_grad, layer.bias_grad)
        if affine:
            assert np.allclose(gradients, expected[1:], atol=1e-4)
        else:
            assert gradients == (None, None)
    with pytest.raises(RuntimeError, match="backward: expected a forward call before it"):
        layer.backward(dy)


@KINDS
def test_instance_norm(rng, kind):
    layer = filled(rng, kind(6, affine=True))
    x, dy = data(rng, INSTANCES[kind])
    assert np.allclose(layer(x), reference.group_norm(x, 6, layer.weight, layer.bias)[0], atol=1e-6)
    expected = reference.group_norm_backward(dy, x, 6, layer.weight)
    assert np.allclose(layer.backward(dy), expected[0], atol=1e-5)
    assert np.allclose((layer.weight_grad, layer.bias_grad), expected[1:], atol=1e-4)
    y = layer(x)
    out = np.empty_like(x[1])
    assert np.array_equal(layer(x[1]), y[1])  # an example alone
    assert layer(x[1], out=out) is out
    assert np.allclose(layer.backward(dy[1]), expected[0][1], atol=1e-5)
    assert np.array_equal(out, y[1])


@KINDS
@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
def test_running_statistics(rng, kind, momentum):
    layer = filled(rng, kind(6, momentum=momentum, affine=True, track_running_stats=True))
    mean, var = np.zeros(6), np.ones(6)
    for _ in range(3):
        x = data(rng, INSTANCES[kind])[0]
        layer(x)
        instances = x.reshape(4, 6, -1).astype(np.float64)
        weight = momentum or 0.0
        mean += weight * (instances.mean(axis=2).mean(axis=0) - mean)
        var += weight * (instances.var(axis=2, ddof=1).mean(axis=0) - var)
    assert np.allclose(layer.running_mean, mean, atol=1e-6)
    assert np.allclose(layer.running_var, var, atol=1e-6)
    assert layer.num_batches_tracked == 0
    layer.eval()
    by = layer.running_mean, layer.running_var, layer.weight, layer.bias
    assert np.array_equal(layer(x), bnext.normalize(x, *by))
    dy = np.ones_like(x)
    scale = layer.weight / np.sqrt(layer.running_var + layer.eps)
    expected = np.broadcast_to(scale.reshape(6, *(1,) * (x.ndim - 2)), x.shape)
    assert np.allclose(layer.backward(dy), expected)
    assert np.array_equal(layer.running_mean, by[0])
    layer.train().freeze()
    assert np.array_equal(layer(x), bnext.normalize(x, *by))
    layer.unfreeze()
    assert not np.array_equal(layer(x), bnext.normalize(x, *by))


def test_an_error_moves_nothing(rng):
    layer = bnext.InstanceNorm1d(6, track_running_stats=True)
    before = layer.state_dict()
    for x in (np.ones((2, 6, 1), np.float32), np.ones((2, 5, 3), np.float32)):
        with pytest.raises(ValueError, match=r"spatial element|expected 6 channels at axis 1"):
            layer(x)
    layer.running_var.setflags(write=False)
    with pytest.raises(ValueError, match="running_var: expected a writeable array"):
        layer(data(rng, (2, 6, 5))[0])
    for name, value in layer.state_dict().items():
        assert np.array_equal(value, before[name])
    layer.running_var.setflags(write=True)
    layer(np.ones((0, 6, 5), np.float32))  # no example: nothing to move by
    assert np.array_equal(layer.running_var, before["running_var"])


def test_channels_last_and_16_bits(rng):
    x, dy = data(rng, (4, 5, 3, 6))
    first = np.moveaxis(x, -1, 1)
    layer = bnext.InstanceNorm2d(6, channel_axis=-1)
    assert np.allclose(np.moveaxis(layer(x), -1, 1), reference.group_norm(first, 6)[0], atol=1e-6)
    assert layer.backward(dy).shape == x.shape
    half = bnext.GroupNorm(2, 6, channel_axis=-1)(x.astype(np.float16))
    assert half.dtype == np.float16
    assert bnext.GroupNorm(2, 6, dtype=np.float64)(first.astype(np.float64)).dtype == np.float64


def test_states_and_copies(rng):
    group = filled(rng, bnext.GroupNorm(3, 6))
    assert list(group.state_dict()) == ["weight", "bias"]
    other = bnext.GroupNorm(3, 6)
    other.load_state_dict(group.state_dict())
    x = data(rng, (2, 6, 5))[0]
    for each in (other, copy.copy(group), copy.deepcopy(group), pickle.loads(pickle.dumps(group))):
        assert np.array_equal(each(x), group(x))
    tracked = bnext.InstanceNorm1d(6, affine=True, track_running_stats=True)
    names = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    assert list(tracked.state_dict()) == names
    assert list(bnext.InstanceNorm1d(6).state_dict()) == []
    with pytest.raises(RuntimeError, match="Missing key"):
        tracked.load_state_dict(group.state_dict())
    tracked(x)
    tracked.reset_running_stats()
    assert not tracked.running_mean.any()
    assert (tracked.running_var == 1).all()


def test_representations():
    assert repr(bnext.GroupNorm(3, 6)) == "GroupNorm(3, 6, eps=1e-05, affine=True)"
    assert repr(bnext.InstanceNorm2d(4, channel_axis=-1, dtype=np.float64)) == (
        "InstanceNorm2d(4, eps=1e-05, momentum=0.1, affine=False, track_running_stats=False, "
        "channel_axis=-1, dtype=float64)"
    )
    assert bnext.GroupNorm(3, 6).num_channels == 6


def test_errors(rng):
    for arguments, text in {
        (4, 6): r"num_channels \(6\) must be divisible by num_groups \(4\)",
        (0, 6): "num_groups: expected an integer >= 1, got 0",
        (1, -1): "num_features: expected an integer >= 0, got -1",
        (2, 6, -1.0): "eps: expected a finite number >= 0",
    }.items():
        with pytest.raises(ValueError, match=text):
            bnext.GroupNorm(*arguments)
    x = data(rng, (2, 6, 5))[0]
    for layer, text in {
        bnext.GroupNorm(3, 9): "x: expected 9 channels at axis 1, got 6",
        bnext.InstanceNorm1d(5, affine=True): "x: expected 5 channels at axis 1, got 6",
        bnext.InstanceNorm2d(6, affine=True, track_running_stats=True): "x: expected 6 channels",
        bnext.InstanceNorm3d(6): r"expected 4D or 5D input \(got 3D input\)",
        bnext.GroupNorm(4, 8, affine=False): "num_groups: expected a divisor of the number of ch",
    }.items():
        with pytest.raises(ValueError, match=text):
            layer(x)
    with pytest.raises(TypeError, match="x: expected dtype float32, float16 or bfloat16, got fl"):
        bnext.GroupNorm(3, 6)(x.astype(np.float64))
    assert bnext.GroupNorm(3, 9, affine=False)(x).shape == x.shape  # as PyTorch's
    with pytest.warns(UserWarning, match="input's size at dim=1 does not match num_features"):
        bnext.InstanceNorm1d(5)(x)
