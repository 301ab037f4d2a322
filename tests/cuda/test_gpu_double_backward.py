"""On a GPU: gradients of the backward pass, against their definition."""

import numpy as np
import pytest

import bnext

from ..activations import ACTIVATIONS
from ..cases import EMPTY, Case, Memory
from ..compare import assert_same_memory_order
from ..epilogues import CASES, DTYPES
from ..sixteen import name_of
from ..test_double_backward import assert_all_same_bits, assert_are, drawn
from .twice_there import fetched, moved

pytestmark = pytest.mark.gpu

# What takes units of four values, and several blocks for a slab.
LARGER = [
    Case("planes-of-four", (3, 5, 4, 10)),
    Case("NCHW-28x28", (19, 6, 28, 28)),
    Case("NCHW-27x29", (19, 6, 27, 29)),
    Case("stored-NHWC", (8, 67, 14, 13), memory=Memory(order=(0, 2, 3, 1))),
    Case("NC-tall", (20001, 32)),
    Case("NC-wide-rows", (70, 1000)),
]
DATA = pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
RESIDUAL = pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])


@RESIDUAL
@DATA
@pytest.mark.parametrize("name", [*ACTIVATIONS, None])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_epilogue(library, rng, case, name, dtype, residual):
    check(library, drawn(rng, case, dtype, name, residual))


@DATA
@pytest.mark.parametrize("name", [None, "relu", "gelu"])
@pytest.mark.parametrize("case", LARGER, ids=str)
def test_several_blocks(library, rng, case, name, dtype):
    check(library, drawn(rng, case, dtype, name, name == "gelu"))


def check(library, inputs):
    there = moved(inputs, library.put)
    results = fetched(there.twice(), library.get)
    dtype = inputs.x.dtype
    # Of float32, the statistics and z are a little farther from the definition than the CPU's.
    assert_are(results, inputs, inputs.expected(), 4.0 if dtype == np.float32 else 2.0)
    assert_same_memory_order(results.x, inputs.x)
    assert_all_same_bits(fetched(there.twice(), library.get), results)


@pytest.mark.parametrize("name", [None, "silu"])
@pytest.mark.parametrize("case", LARGER[:4], ids=str)
def test_means_large_beside_deviations(library, rng, case, name):
    ratio = 1e4
    x, dy, ddx = (
        case.memory.place((rng.normal(size=case.shape) + mean).astype(np.float32))
        for mean in (ratio, ratio, -ratio)
    )
    inputs = drawn(rng, case, np.float32, name, x=x, dy=dy if name is None else None, ddx=ddx)
    results = fetched(moved(inputs, library.put).twice(), library.get)
    assert_are(results, inputs, inputs.expected(), 8.0)


@pytest.mark.parametrize("case", EMPTY, ids=str)
def test_without_values(library, case):
    x = library.put(np.zeros(case.shape, np.float32))
    saved = bnext.batch_norm_forward(x, channel_axis=case.channel_axis)[1]
    results = fetched(bnext.batch_norm_double_backward(x, x, x, saved), library.get)
    assert results.dy.shape == results.x.shape == case.shape
    np.testing.assert_array_equal(results.weight, np.zeros(case.channels))
