"""On a GPU: more than 2^31 elements, where an offset of 32 bits would wrap around."""

import math
import types

import pytest

import bnext

from . import gpu_reference

pytestmark = pytest.mark.gpu

LARGE = {
    "planar": ((129, 16, 1024, 1024), 1),
    "planar-many-channels": ((2, 65536, 127, 131), 1),
    "interleaved": ((2**21 + 3, 1024), 1),
    "interleaved-few-channels": ((2**27 + 1, 16), 1),
}
PLACES = 7  # how many channels are compared, evenly spaced with the first and the last


@pytest.mark.parametrize("name", LARGE)
def test_more_than_2_to_the_31_elements(tensors, name):
    torch = tensors.xp
    shape, axis = LARGE[name]
    channels, elements = shape[axis], math.prod(shape)
    assert elements > 2**31
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    # x, dy, y and dx in 16 bits; some arrays of a channel in float64 for the reference.
    needed = 4 * 2 * elements + 20 * 8 * (elements // channels)
    if free < needed:
        pytest.skip(f"{free >> 30} GiB are free, {needed >> 30} GiB are needed")
    generator = torch.Generator(device="cuda").manual_seed(7)
    x = torch.empty(shape, dtype=torch.float16, device="cuda").normal_(generator=generator)
    dy = x.flip(0)
    weight = torch.linspace(0.5, 2, channels, device="cuda")
    bias = torch.linspace(-1, 1, channels, device="cuda")
    y, saved = bnext.batch_norm_forward(x, weight, bias)
    dx, dweight, dbias = bnext.batch_norm_backward(dy, x, saved, weight)
    for c in sorted({round(place * (channels - 1) / (PLACES - 1)) for place in range(PLACES)}):
        one = slice(c, c + 1)
        x_, dy_, y_, dx_ = (array.narrow(axis, c, 1) for array in (x, dy, y, dx))
        expected = gpu_reference.expected(torch, x_, dy_, weight[one], bias[one], axis)
        own = types.SimpleNamespace(mean=saved.mean[one], m2=saved.m2[one])
        gpu_reference.assert_forward(torch, y_, own, expected, axis)
        gradients = dx_, dweight[one], dbias[one]
        gpu_reference.assert_backward(torch, gradients, expected, axis)
        del expected
