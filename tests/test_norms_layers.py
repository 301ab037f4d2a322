"""The layers of norms of examples: as the functions, and by running statistics."""

import copy

import numpy as np
import pytest

import bnext

from . import activations
from .activations import SLOPE
from .compare import assert_same_bits
from .norms import (
    NORMS,
    RESIDUAL,
    Rows,
    both_passes,
    drawn,
)
from .test_norms_errors import ANY_WRONG, assert_refused

LAYERS = {
    "layer": lambda **given: bnext.LayerNorm((5, 7), **given),
    "rms": lambda **given: bnext.RMSNorm((5, 7), **given),
    "group": lambda **given: bnext.GroupNorm(4, 8, **given),
    "instance": lambda **given: bnext.InstanceNorm2d(
        8, affine=True, track_running_stats=True, **given
    ),
}


def layer_of(rng, kind, name, adds):
    """A layer with drawn parameters, and the inputs of its function."""
    norm = Rows(2, kind == "layer") if kind in ("layer", "rms") else NORMS[kind][0]
    inputs = drawn(rng, norm, (3, 8, 5, 7), name=name, adds=adds)
    layer = LAYERS[kind](activation=name, negative_slope=SLOPE)
    layer.weight[...] = inputs.weight
    if norm.has_bias:
        layer.bias[...] = inputs.bias
    return layer, inputs


@RESIDUAL
@pytest.mark.parametrize("name", ["leaky_relu", "silu", None])
@pytest.mark.parametrize("kind", LAYERS)
def test_layers(rng, kind, name, adds):
    """As the functions; copies too, and an activation that changed is not gone by."""
    layer, inputs = layer_of(rng, kind, name, adds)
    if name == "leaky_relu":
        assert "activation='leaky_relu', negative_slope=0.25" in repr(layer)
    again = copy.deepcopy(layer)
    expected = both_passes(inputs, eps=layer.eps)
    given = {"residual": inputs.residual} if adds else {}
    assert_same_bits(layer(inputs.x, **given), expected.y)
    found = layer.backward(inputs.dy, residual_grad=adds)
    assert_same_bits(found[0] if adds else found, expected.dx)
    if adds:
        assert_same_bits(found[1], expected.dresidual)
    assert_same_bits(layer.weight_grad, expected.dweight)
    assert_same_bits(again(inputs.x, **given), expected.y)
    again.activation = None
    if adds:
        assert_same_bits(again.backward(inputs.dy)[1], expected.dresidual)
        again(inputs.x, **given)
        with pytest.raises(ValueError, match="residual_grad: expected True or None, since"):
            again.backward(inputs.dy, residual_grad=False)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("kind", ["group", "instance"])
def test_an_activation_of_a_layer_is_one_behind_it(rng, kind, mode):
    """Also by running statistics."""
    layer, inputs = layer_of(rng, kind, "silu", False)
    assert "activation='silu'" in repr(layer)
    plain = copy.deepcopy(layer)
    plain.activation = None
    getattr(layer, mode)(), getattr(plain, mode)()
    z, act = np.float64(plain(inputs.x)), activations.of("silu")
    np.testing.assert_allclose(layer(inputs.x), act.value(z), rtol=0, atol=2e-6)
    g = (np.float64(inputs.dy) * act.derivative(z)).astype(np.float32)
    dx = layer.backward(inputs.dy)
    np.testing.assert_allclose(dx, plain.backward(g), rtol=0, atol=2e-5)
    np.testing.assert_allclose(layer.weight_grad, plain.weight_grad, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", ["leaky_relu", None])
def test_instance_norm_layers_with_a_residual(rng, name):
    """One example alone, and running statistics."""
    layer, inputs = layer_of(rng, "instance", name, True)
    x, dy, residual = inputs.x, inputs.dy, inputs.residual
    expected = both_passes(inputs)
    assert_same_bits(layer(x[1], residual=residual[1]), expected.y[1])
    for got, whole in zip(layer.backward(dy[1]), (expected.dx, expected.dresidual), strict=True):
        assert_same_bits(got, whole[1])
    layer.eval()
    given = layer.running_mean, layer.running_var, inputs.weight, inputs.bias
    y = bnext.normalize(x, *given, eps=layer.eps, **inputs.options)
    assert_same_bits(layer(x, residual=residual), y)
    dx, dresidual = layer.backward(dy)
    g = dy * activations.of(name).derivative(np.float64(y))  # y is positive where z is
    assert_same_bits(dresidual, g.astype(np.float32))
    scale = (inputs.weight / np.sqrt(layer.running_var + layer.eps)).reshape(-1, 1, 1)
    np.testing.assert_allclose(dx, g * scale, rtol=1e-5)


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_errors_of_layers(make):
    for given, error, text in ANY_WRONG:
        assert_refused(lambda given=given: make(**given), error, text)
