"""Arrays of the emulated GPU, for tests that take the fixture `place`."""

import numpy as np

from ..compare import assert_same_bits
from ..fake_cuda import Array
from ..norms import Place

SMALL, LARGE = 0, 1  # devices


class There(Place):
    on_gpu = True

    def __init__(self, make=Array, device=SMALL):
        self.make, self.device = make, device

    def put(self, values):
        return None if values is None else self.make(values, self.device)

    def get(self, array):
        assert type(array) is self.make
        return array.values

    def bits(self, results):
        """As `Results.bits`."""
        return results.arrays | {"rows": self.get(results.saved.rows)}

    def assert_moves(self, layer, step, units):
        """A layer has the CPU's results there (within units of the largest), and back here its
        bits; `step` takes it, and what makes arrays."""
        expected = step(layer, lambda values: values)
        layer.to(self.put(np.empty(0)))
        assert isinstance(layer.weight, self.make)
        for one, other in zip(map(self.get, step(layer, self.put)), expected, strict=True):
            assert one.dtype == other.dtype
            one, wide = (each.astype(float) for each in (one, other))
            near = units(other.dtype.type)
            np.testing.assert_allclose(one, wide, rtol=near, atol=near * np.abs(wide).max())
        layer.to(np.empty(0))
        for one, other in zip(step(layer, lambda values: values), expected, strict=True):
            assert_same_bits(one, other)


def step_of(inputs):
    """A step of a layer: results of both passes, as `assert_moves` asks for them."""

    def step(layer, put):
        layer.weight[...] = put(inputs.weight)
        if inputs.norm.has_bias:
            layer.bias[...] = put(inputs.bias)
        adds = inputs.residual is not None
        added = {"residual": put(inputs.residual)} if adds else {}
        y, gradients = layer(put(inputs.x), **added), layer.backward(put(inputs.dy))
        sums = [layer.weight_grad] + [layer.bias_grad] * inputs.norm.has_bias
        return [y, *(gradients if adds else [gradients]), *sums]

    return step


def launches_of(module, call):
    """What a call asked of the device, in order."""
    module.record(True)
    try:
        call()
    finally:
        requests = module.record(False)
    return requests
