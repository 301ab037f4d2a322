"""CPU arrays of other libraries: computed where they lie, and results of the same library.

PyTorch is tested where it is installed; a producer of DLPack that is nothing else, and a small
library around it, always.
"""

import gc
import sys
import threading
import time
import types

import ml_dtypes
import numpy as np
import pytest

import bnext
from bnext.arrays import libraries

from .array_libraries import (
    IN_LAYOUTS,
    SHAPE,
    SMALL,
    Producer,
    Small,
    Unversioned,
    address,
    as_torch,
    drawn,
    from_nothing,
    from_small,
    from_torch,
)
from .compare import assert_same_bits
from .optional import marked

DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
NAMES = [np.dtype(dtype).name for dtype in DTYPES]


# How an array becomes one of the library, and how it comes back; always on the same memory.
LIBRARIES = {
    "torch": (as_torch, from_torch),
    "small": (Small, from_small),
    "producer": (Producer, from_nothing),  # of no library: NumPy's answer, as to a list
    "unversioned": (Unversioned, from_nothing),
}


@pytest.fixture(params=marked(LIBRARIES))
def library(request):
    return LIBRARIES[request.param]


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES)
@IN_LAYOUTS
def test_results_are_numpy_s_to_the_bit(rng, library, layout, dtype):
    make, values_of = library
    x, dy, weight, bias, mean, var, axis = drawn(rng, layout, dtype)
    y, saved = bnext.batch_norm_forward(x, weight, bias, channel_axis=axis)
    gradients = bnext.batch_norm_backward(dy, x, saved, weight)
    x_, dy_, weight_, bias_, mean_, var_ = map(make, (x, dy, weight, bias, mean, var))
    y_, saved_ = bnext.batch_norm_forward(x_, weight_, bias_, channel_axis=axis)
    assert_same_bits(values_of(y_), y)
    assert values_of(y_).strides == y.strides
    for name in ("mean", "m2", "var", "rstd"):
        assert_same_bits(getattr(saved_, name), getattr(saved, name), name)
    there = bnext.batch_norm_backward(dy_, x_, saved_, weight_)
    for actual, expected in zip(there, gradients, strict=True):
        assert_same_bits(values_of(actual), expected)
    expected = bnext.normalize(x, mean, var, weight, bias, channel_axis=axis)
    actual = bnext.normalize(x_, mean_, var_, weight_, bias_, channel_axis=axis)
    assert_same_bits(values_of(actual), expected)
    moments = bnext.moments(x_, channel_axis=axis)
    assert type(moments.mean) is np.ndarray
    assert moments == bnext.moments(x, channel_axis=axis)


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES)
@IN_LAYOUTS
def test_out_is_written_in_place(rng, library, layout, dtype):
    make, _ = library
    x, dy, _, _, mean, var, axis = drawn(rng, layout, dtype)
    y, saved = bnext.batch_norm_forward(x, channel_axis=axis)
    values = np.zeros_like(x)
    out, x_ = make(values), make(x)
    result, saved_ = bnext.batch_norm_forward(x_, channel_axis=axis, out=out)
    assert result is out
    assert_same_bits(values, y)
    result, *_ = bnext.batch_norm_backward(make(dy), x_, saved_, out=out)
    assert result is out
    assert_same_bits(values, bnext.batch_norm_backward(dy, x, saved)[0])
    assert bnext.normalize(x_, make(mean), make(var), channel_axis=axis, out=out) is out
    assert_same_bits(values, bnext.normalize(x, mean, var, channel_axis=axis))
    text = "^out: expected memory of its own, got an array that overlaps x$"
    with pytest.raises(ValueError, match=text):
        bnext.batch_norm_backward(make(dy), x_, saved_, out=make(x))


@pytest.mark.usefixtures("collected")
def test_nothing_is_copied(library, rng):
    """The pool knows of every array of this size that bnext makes: one for each result."""
    make, values_of = library
    x = make(rng.normal(size=SHAPE).astype(np.float32))
    before = bnext.show_config(mode="dicts")["pool"]
    y, saved = bnext.batch_norm_forward(x)
    dx, _, _ = bnext.batch_norm_backward(x, x, saved)
    after = bnext.show_config(mode="dicts")["pool"]
    calls = [pool["hits"] + pool["misses"] for pool in (before, after)]
    assert calls[1] - calls[0] == 2
    assert after["in_use_bytes"] - before["in_use_bytes"] >= 2 * 4 * np.prod(SHAPE)
    assert address(values_of(y)) != address(values_of(dx))


@pytest.mark.usefixtures("collected")
def test_results_outlive_what_they_come_from(library, rng):
    """The memory of a result is the pool's, and goes back to it with the last who sees it."""
    make, values_of = library
    gc.collect()
    x = rng.normal(size=SHAPE).astype(np.float32)
    expected, _ = bnext.batch_norm_forward(x)
    expected = expected.copy()
    before = bnext.show_config(mode="dicts")["pool"]["in_use_bytes"]
    y, _ = bnext.batch_norm_forward(make(x))
    part = values_of(y)[1:]
    del y
    gc.collect()
    bnext.batch_norm_forward(x)  # memory that was given back too early would be taken here
    assert_same_bits(part, expected[1:])
    assert bnext.show_config(mode="dicts")["pool"]["in_use_bytes"] > before
    del part
    gc.collect()
    assert bnext.show_config(mode="dicts")["pool"]["in_use_bytes"] == before


@IN_LAYOUTS
def test_layers(rng, library, layout, dtype):
    """Parameters stay NumPy's; what comes out is of the library."""
    make, values_of = library
    x, dy, weight, _, _, _, axis = drawn(rng, layout, dtype)
    ours, there = (bnext.BatchNorm(SHAPE[1], channel_axis=axis, dtype=dtype) for _ in range(2))
    for training in (True, False):
        for bn in (ours, there):
            bn.train(training).weight[...] = weight
        assert_same_bits(values_of(there(make(x))), ours(x))
        assert_same_bits(values_of(there.backward(make(dy))), ours.backward(dy))
        for name in ("running_mean", "running_var", "weight_grad", "bias_grad"):
            assert_same_bits(getattr(there, name), getattr(ours, name), name)
    assert there.num_batches_tracked == 1


def test_numpy_arrays_may_stand_beside(library, rng):
    make, values_of = library
    x, dy = rng.normal(size=(2, 19, 5)).astype(np.float32)
    weight = rng.normal(size=5).astype(np.float32)
    y, saved = bnext.batch_norm_forward(x, weight)
    y_, saved_ = bnext.batch_norm_forward(make(x), weight)
    assert_same_bits(values_of(y_), y)
    dx, dweight, _ = bnext.batch_norm_backward(dy, make(x), saved_, weight)
    assert_same_bits(values_of(dx), bnext.batch_norm_backward(dy, x, saved, weight)[0])
    assert type(dweight) is np.ndarray, "gradients of parameters are as the parameters"
    out = np.zeros_like(x)
    assert bnext.batch_norm_forward(make(x), weight, out=out)[0] is out
    assert_same_bits(out, y)


def test_namespaces_that_array_api_compat_knows(monkeypatch):
    """Where it is installed it is asked; without it such arrays give NumPy's."""

    class Known(Producer):
        pass

    class Another(Producer):
        pass

    compat = types.SimpleNamespace(array_namespace=lambda array: SMALL)
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    monkeypatch.setitem(sys.modules, "array_api_compat", compat)
    assert type(bnext.batch_norm_forward(Known(x))[0]) is Small
    monkeypatch.setitem(sys.modules, "array_api_compat", None)
    assert type(bnext.batch_norm_forward(Another(x))[0]) is np.ndarray


def test_threads_find_one_library(monkeypatch):
    """Also if they come at once, with the first arrays of it."""
    together = threading.Barrier(4)

    class Slow(libraries.Library):
        def __init__(self, *of):
            time.sleep(0.05)
            super().__init__(*of)

    class Known(Producer):
        def __array_namespace__(self):
            return namespace

    namespace = types.SimpleNamespace(__name__="slow")
    monkeypatch.setattr(libraries, "Library", Slow)
    kinds = [Known, type("Another", (Known,), {})]
    found = [None] * 4

    def find(number):
        array = kinds[number % 2](np.ones(3))
        together.wait()
        found[number] = libraries.library_of(array)

    threads = [threading.Thread(target=find, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0].xp is namespace
    assert all(library is found[0] for library in found)


def test_lists_are_numpy_s():
    x = [[1.0, 2.0], [3.0, 5.0]]
    assert type(bnext.batch_norm_forward(x)[0]) is np.ndarray
    assert type(bnext.BatchNorm1d(2, dtype=float)(x)) is np.ndarray
