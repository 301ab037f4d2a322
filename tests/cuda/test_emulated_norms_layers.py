"""Layers of norms of examples by the emulated kernels."""

import copy

import numpy as np
import pytest

import bnext

from ..activations import SLOPE
from ..fake_cuda import Array
from ..norms import (
    CENTERED,
    DATA,
    RESIDUAL,
    UNIT,
    Cells,
    Rows,
    drawn,
    param,
)
from ..test_norms_layers import layer_of
from .norms import HERE
from .there import LARGE, There, step_of

pytestmark = pytest.mark.usefixtures("emulated")
F4 = np.float32


@pytest.mark.parametrize("name", [None, "gelu", "relu"])
@RESIDUAL
@DATA
@CENTERED
def test_row_layers(rng, dtype, name, adds, centered):
    """As on the CPU; `to` moves the parameters there and back."""
    inputs = drawn(rng, Rows(2, centered), (9, 4, 12), dtype, name=name, adds=adds)
    kind = bnext.LayerNorm if centered else bnext.RMSNorm
    layer = kind((4, 12), dtype=param(dtype), activation=name)
    HERE.assert_moves(layer, step_of(inputs), lambda dtype: 16 * UNIT[dtype])


@pytest.mark.parametrize("name", [None, "relu"])
@RESIDUAL
@pytest.mark.parametrize(("kind", "axis"), [("group", 1), ("group", -1), ("instance", 1)])
def test_cell_layers(rng, kind, name, adds, axis):
    layer, inputs = layer_of(rng, kind, name, adds)
    if axis == -1:
        layer = bnext.GroupNorm(4, 8, channel_axis=axis, activation=name, negative_slope=SLOPE)
        inputs = inputs.mapped(
            lambda a: np.ascontiguousarray(np.moveaxis(a, 1, -1)) if a.ndim > 1 else a
        )
    HERE.assert_moves(layer, step_of(inputs), lambda _: 2e-5)


@pytest.mark.parametrize("momentum", [0.3, None])
def test_instance_norm_layers_with_running_statistics(rng, momentum):
    layer = bnext.InstanceNorm2d(6, momentum=momentum, affine=True, track_running_stats=True)
    inputs = drawn(rng, Cells(6), (3, 6, 5, 7))
    moved = []

    def step(layer, put):
        layer.train()
        layer.running_mean[...], layer.running_var[...] = 0, 1
        x, dy = put(inputs.x), put(inputs.dy)
        results = [layer(x), layer.backward(dy)]
        layer.eval()
        results += [layer(x), layer.backward(dy), layer(put(inputs.x[0]))]
        moved.append(getattr(layer.running_mean, "values", layer.running_mean).any())
        copies = [layer.running_mean, layer.running_var, layer.weight_grad]
        return [*results, *map(copy.copy, copies)]

    HERE.assert_moves(layer, step, lambda _: 2e-5)
    assert all(each == (momentum is not None) for each in moved)


def test_layers_say_where_their_arrays_are(rng):
    x = rng.standard_normal((4, 8)).astype(F4)
    norm = bnext.LayerNorm(8)
    with pytest.raises(
        TypeError,
        match=r"^weight: expected an array on cuda:0, like x, got one on the CPU; the layer's "
        r"to\(x\) moves it$",
    ):
        norm(HERE.put(x))
    norm.to(HERE.put(x))
    with pytest.raises(TypeError, match=r"^weight: expected an array on"):
        norm(There(Array, LARGE).put(x))
    with pytest.raises(TypeError, match=r"^x: expected dtype float32, float16 or bfloat16, got"):
        norm(HERE.put(x.astype(np.float64)))
    x = HERE.put(rng.standard_normal((3, 6, 5, 7)).astype(F4))
    for layer in (
        bnext.GroupNorm(3, 6),
        bnext.InstanceNorm2d(6, affine=True),
        bnext.InstanceNorm2d(6, track_running_stats=True),
        bnext.InstanceNorm2d(6, track_running_stats=True).eval(),
    ):
        with pytest.raises(TypeError, match=r"the layer's to\(x\) moves it"):
            layer(x)
