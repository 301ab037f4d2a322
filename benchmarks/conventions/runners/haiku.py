"""dm-haiku: hk.BatchNorm, whose averages are debiased. It has no default of decay_rate."""

import haiku
import jax
import jax.numpy as jnp

from .recording import Layer, double, record


class BatchNorm(Layer):
    channels_last = True
    momentum = 0.9
    eps = 1e-5  # the default

    def __init__(self, given, rank):
        if self.dtype == "float64":
            jax.config.update("jax_enable_x64", True)

        def call(x, training):
            layer = haiku.BatchNorm(create_scale=True, create_offset=True, decay_rate=self.momentum)
            return layer(x, is_training=training)

        self.function = haiku.transform_with_state(call)
        self.train_step = jax.jit(lambda *arrays: self.function.apply(*arrays, True)[1])
        shape = (1,) * (rank - 1) + (given.weight.size,)
        params, self.state = self.function.init(
            jax.random.key(0), jnp.ones(shape, self.dtype), True
        )
        (self.module,) = params
        values = {"scale": given.weight, "offset": given.bias}
        self.params = {
            self.module: {
                k: jnp.asarray(values[k], self.dtype).reshape(v.shape)
                for k, v in params[self.module].items()
            }
        }

    def train(self, x):
        self.state = self.train_step(self.params, self.state, None, x)

    def stored(self):
        arrays = dict(self.params[self.module])
        for module, state in self.state.items():
            average = module.rpartition("/~/")[2]
            arrays.update({f"{average}/{k}": v for k, v in state.items()})
        return arrays

    def infer(self, x):
        return self.function.apply(self.params, self.state, None, x, False)[0]


if __name__ == "__main__":
    record({"decay_rate=0.9": BatchNorm, "float64": double(BatchNorm)}, "dm-haiku", "jax")
