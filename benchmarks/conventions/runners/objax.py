"""objax: objax.nn.BatchNorm0D and BatchNorm2D."""

import jax.numpy as jnp
import objax

from .recording import Layer, record


class BatchNorm(Layer):
    names = ("gamma", "beta", "running_mean", "running_var")

    def __init__(self, given, rank):
        make = objax.nn.BatchNorm2D if rank == 4 else objax.nn.BatchNorm0D
        self.layer = make(given.weight.size)
        for variable, values in ((self.layer.gamma, given.weight), (self.layer.beta, given.bias)):
            variable.assign(jnp.asarray(values.reshape(variable.value.shape)))

    def train(self, x):
        self.layer(jnp.asarray(x), training=True)

    def array(self, value):
        return value.value

    def infer(self, x):
        return self.layer(jnp.asarray(x), training=False)


if __name__ == "__main__":
    record({"default": BatchNorm}, "objax", "jax")
