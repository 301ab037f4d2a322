"""JAX's arrays on the CPU in calls of bnext."""

import numpy as np
import pytest

import bnext

from .array_libraries import SHAPE, address, as_jax, from_jax
from .compare import assert_same_bits

pytestmark = pytest.mark.jax


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_jax(jax, rng, dtype):
    x, dy = (rng.normal(0.5, 2, SHAPE).astype(np.float32) for _ in range(2))
    x_, dy_ = (jax.numpy.asarray(array).astype(dtype) for array in (x, dy))
    x, dy = map(np.asarray, (x_, dy_))
    weight = rng.uniform(0.5, 2, SHAPE[1]).astype(np.float32)
    y, saved = bnext.batch_norm_forward(x, weight)
    y_, saved_ = bnext.batch_norm_forward(x_, as_jax(weight))
    assert y_.dtype == x_.dtype
    assert_same_bits(from_jax(y_), y)
    expected = bnext.batch_norm_backward(dy, x, saved, weight)
    actual = bnext.batch_norm_backward(dy_, x_, saved_, as_jax(weight))
    for gradient, value in zip(actual, expected, strict=True):
        assert_same_bits(from_jax(gradient), value)
    bn = bnext.BatchNorm2d(SHAPE[1])
    assert_same_bits(from_jax(bn(x_)), bnext.batch_norm_forward(x)[0])
    assert_same_bits(from_jax(bn.backward(dy_)), bnext.batch_norm_backward(dy, x, saved_)[0])
    assert type(bn.weight_grad) is np.ndarray


def test_jax_memory_is_shared(jax, rng):
    """bnext's view of a JAX array, and JAX's of a result, are the memory that they are of."""
    x = as_jax(rng.normal(size=SHAPE).astype(np.float32))
    view = bnext._core.from_dlpack(x.__dlpack__())
    assert address(view) == x.unsafe_buffer_pointer()
    y, _ = bnext._core.forward(view, None, None, 1e-5, 1, None)
    result = jax.numpy.from_dlpack(bnext._core.Exported(y))
    assert result.unsafe_buffer_pointer() == address(y)


def test_jax_arrays_cannot_be_written():
    x = as_jax(np.arange(12, dtype=np.float32).reshape(4, 3))
    text = "^out: expected an array that can be written, got one of jax$"
    with pytest.raises(TypeError, match=text):
        bnext.batch_norm_forward(x, out=x + 1)
    with pytest.raises(
        TypeError, match=r"^like: expected an array that can be written, got one of"
    ):
        bnext.BatchNorm1d(3).to(x)
    bn = bnext.BatchNorm1d(3)
    bn.running_mean = as_jax(np.zeros(3, np.float32))
    with pytest.raises(TypeError, match=r"^running_mean: expected an array that can be written"):
        bn(x)


def test_jax_tracers(jax):
    def function(x):
        return bnext.batch_norm_forward(x)[0]

    with pytest.raises(TypeError, match=r"^x: expected an array, got a tracer of JAX"):
        jax.jit(function)(as_jax(np.ones((4, 3), np.float32)))
