"""What the tests of `bnext.jax` share: inputs, the functions for NumPy, a plain reference."""

import importlib

import ml_dtypes
import numpy as np

import bnext

from ..activations import SLOPE
from ..optional import import_jax, require_foreign_functions

jax = import_jax()
jnp = jax.numpy
check_grads = importlib.import_module("jax.test_util").check_grads

require_foreign_functions()

import bnext.jax  # noqa: E402 - of which there is nothing without JAX

DTYPES = [np.float32, ml_dtypes.bfloat16, np.float16]
ACTIVATIONS = (
    "relu",
    "relu6",
    "leaky_relu",
    "silu",
    "hardswish",
    "gelu",
    "gelu_tanh",
    "sigmoid",
    "tanh",
)
AXIS = -1


def parameters_dtype(dtype):
    return np.float64 if dtype == np.float64 else np.float32


class Inputs:
    """Arrays of one call of each pass, as NumPy has them."""

    def __init__(
        self, rng, shape=(6, 5, 7, 19), dtype=np.float32, channel_axis=AXIS, residual=False
    ):
        parameters = parameters_dtype(dtype)
        channels = shape[channel_axis]
        self.channel_axis = channel_axis
        self.x = (rng.normal(size=shape) * 2 + 3).astype(dtype)
        self.dy = rng.normal(size=shape).astype(dtype)
        self.weight = rng.uniform(0.5, 1.5, channels).astype(parameters)
        self.bias = rng.normal(size=channels).astype(parameters)
        self.mean = (rng.normal(size=channels) + 3).astype(parameters)
        self.var = rng.uniform(1, 5, channels).astype(parameters)
        self.residual = rng.normal(size=shape).astype(dtype) if residual else None

    @property
    def affine(self):
        return self.weight, self.bias

    def options(self, activation=None):
        return {
            "channel_axis": self.channel_axis, "activation": activation,
            "negative_slope": SLOPE, "residual": self.residual,
        }  # fmt: skip

    def by_numpy(self, activation=None):
        """y, the statistics, and the gradients of each array by the functions for NumPy."""
        y, saved = bnext.batch_norm_forward(
            self.x, self.weight, self.bias, **self.options(activation)
        )
        read = self.residual if saved.reads_residual else None
        return (
            y,
            saved,
            bnext.batch_norm_backward(self.dy, self.x, saved, self.weight, residual=read),
        )

    def by_jax(self, activation=None, transform=lambda function: function):
        """The same by `bnext.jax`."""
        options = self.options(activation)
        del options["residual"]

        def call(x, weight, bias, residual):
            return bnext.jax.batch_norm(x, weight, bias, residual=residual, **options)

        def both(dy, *arrays):
            y, pull_back, moments = jax.vjp(call, *arrays, has_aux=True)
            return y, moments, pull_back(dy)

        return transform(both)(self.dy, self.x, self.weight, self.bias, self.residual)


def assert_same_bits(actual, expected, what=""):
    actual, expected = np.atleast_1d(actual), np.atleast_1d(expected)
    assert actual.dtype == expected.dtype, what
    np.testing.assert_array_equal(
        actual.view(np.uint8) if actual.size else actual,
        expected.view(np.uint8) if expected.size else expected, err_msg=what,
    )  # fmt: skip


# --- as one would write it, to be differentiated in float64 ---------------------------------------


def activated(name, z):
    functions = {
        None: lambda z: z,
        "relu": jax.nn.relu,
        "relu6": jax.nn.relu6,
        "leaky_relu": lambda z: jax.nn.leaky_relu(z, SLOPE),
        "silu": jax.nn.silu,
        "hardswish": jax.nn.hard_swish,
        "gelu": lambda z: jax.nn.gelu(z, approximate=False),
        "gelu_tanh": lambda z: jax.nn.gelu(z, approximate=True),
        "sigmoid": jax.nn.sigmoid,
        "tanh": jnp.tanh,
    }
    return functions[name](z)


def plain(x, weight, bias, residual=None, *, activation=None, eps=1e-5, statistics=None):
    """Batch normalization of channels last: y, mean and m2."""
    axes = tuple(range(x.ndim - 1))
    mean, var = (x.mean(axes), x.var(axes)) if statistics is None else statistics
    z = (x - mean) / jnp.sqrt(var + eps) * weight + bias
    z = z if residual is None else z + residual
    return activated(activation, z), mean, var * (x.size // x.shape[-1])


def in_float64(function, *arguments):
    """What a plain formula gives in float64, as one program.

    JAX compiles each operation outside of programs by itself, which takes many times longer.
    """
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda each: np.asarray(each, np.float64), arguments)
        return jax.jit(function)(*wide)


def close(actual, expected, tolerance):
    """Within `tolerance` times the largest magnitude, leaf by leaf."""
    actual, expected = jax.tree.leaves(actual), jax.tree.leaves(expected)
    assert len(actual) == len(expected) > 0
    for one, other in zip(actual, expected, strict=True):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        assert one.shape == other.shape
        np.testing.assert_allclose(
            one, other, rtol=0, atol=tolerance * max(np.abs(other).max(), 1e-3)
        )
