"""Adversarial data through every path of the emulated kernels."""

import numpy as np
import pytest

import bnext

from ..fake_cuda import Array
from ..optional import import_emulated
from . import adversarial, gpu

import_emulated()


class Emulated:
    """Fake arrays on an emulated GPU, over memory of the CPU."""

    def __init__(self, device):
        self.device = device

    def put(self, values):
        return Array(values, self.device)

    def get(self, array):
        assert isinstance(array, Array)
        return array.values


# On the small device slabs exceed the shared memory, on the large one all paths can do all of them.
SMALL, LARGE = 0, 1
PATHS = [(None, SMALL), ("chunked", SMALL), ("two_kernels", SMALL), (None, LARGE)]
PATHS += [(path, LARGE) for path in gpu.PATHS]


@pytest.fixture(params=PATHS, ids=lambda p: f"{p[0]}-{('small', 'large')[p[1]]}")
def path_and_tensors(request, emulated):
    path, device = request.param
    return path, Emulated(device)


@pytest.fixture
def path(path_and_tensors):
    return path_and_tensors[0]


@pytest.fixture
def tensors(path_and_tensors):
    return path_and_tensors[1]


@pytest.mark.parametrize("case", adversarial.CASES, ids=str)
def test_adversarial_numerics(tensors, case, dtype, path, rng):
    adversarial.check_numerics(tensors, case, dtype, path, rng)


@pytest.mark.parametrize("value", adversarial.NOT_FINITE, ids=str)
@pytest.mark.parametrize("case", adversarial.CASES, ids=str)
def test_what_is_not_finite_stays_in_its_channel(tensors, case, dtype, path, value, rng):
    adversarial.check_not_finite(tensors, case, dtype, path, value, rng)


@pytest.mark.parametrize("case", adversarial.CASES, ids=str)
def test_same_bits_every_time(tensors, case, dtype, path, rng):
    x, dy = case.x(rng, dtype), case.dy(rng, dtype)

    def results():
        x_, dy_ = tensors.put(x), tensors.put(dy)
        y, saved = bnext.batch_norm_forward(x_, channel_axis=case.channel_axis)
        return [tensors.get(a) for a in (y, *bnext.batch_norm_backward(dy_, x_, saved))]

    first, second = (results() if path is None else gpu.forced(path, results) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.isfinite(a).all()
