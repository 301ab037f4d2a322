"""Flax: linen.BatchNorm and nnx.BatchNorm."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import linen, nnx, serialization

from .recording import Layer, double, record


@functools.partial(jax.jit, static_argnums=0)
def _linen(layer, variables, x):
    return layer.apply(variables, x, use_running_average=False, mutable=["batch_stats"])


@nnx.jit
def _nnx(layer, x):
    layer(x, use_running_average=False)


class Linen(Layer):
    channels_last = True
    suffix = ".msgpack"

    def __init__(self, given, rank):
        self.layer = linen.BatchNorm(use_running_average=None)
        dtype = self.dtype
        if dtype == "float64":
            jax.config.update("jax_enable_x64", True)
        self.params = {
            "scale": jnp.asarray(given.weight, dtype), "bias": jnp.asarray(given.bias, dtype)
        }  # fmt: skip
        channels = given.weight.size
        shape = (1, *(1,) * (rank - 2), channels)
        variables = self.layer.init(
            jax.random.key(0), jnp.ones(shape, dtype), use_running_average=False
        )
        self.statistics = variables["batch_stats"]

    def _variables(self):
        return {"params": self.params, "batch_stats": self.statistics}

    def train(self, x):
        _, moved = _linen(self.layer, self._variables(), x)
        self.statistics = moved["batch_stats"]

    def stored(self):
        return {**self.params, **self.statistics}

    def save(self, path):
        Path(path).write_bytes(serialization.to_bytes(self._variables()))

    def infer(self, x):
        return self.layer.apply(self._variables(), x, use_running_average=True)


class NNX(Layer):
    channels_last = True
    names = ("scale", "bias", "mean", "var")

    def __init__(self, given, rank):
        self.layer = nnx.BatchNorm(given.weight.size, rngs=nnx.Rngs(0))
        self.layer.scale.set_value(jnp.asarray(given.weight))
        self.layer.bias.set_value(jnp.asarray(given.bias))

    def train(self, x):
        _nnx(self.layer, x)

    def array(self, value):
        return value.get_value()

    def infer(self, x):
        return self.layer(x, use_running_average=True)


if __name__ == "__main__":
    record({"linen": Linen, "nnx": NNX, "linen, float64": double(Linen)}, "flax", "jax")
