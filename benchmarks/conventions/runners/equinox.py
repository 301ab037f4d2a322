"""Equinox: eqx.nn.BatchNorm in both modes, under vmap."""

import equinox
import jax
import jax.numpy as jnp

from .recording import Layer, double, record


class Batch(Layer):
    mode = "batch"

    def __init__(self, given, rank):
        if self.dtype == "float64":
            jax.config.update("jax_enable_x64", True)
        layer = equinox.nn.BatchNorm(
            given.weight.size, "batch", mode=self.mode, dtype=jnp.dtype(self.dtype)
        )
        parameters = tuple(jnp.asarray(a, self.dtype) for a in (given.weight, given.bias))
        layer = equinox.tree_at(lambda m: (m.weight, m.bias), layer, parameters)
        self.layer, self.state = layer, equinox.nn.State(layer)
        self.call = equinox.filter_jit(
            jax.vmap(self.layer, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        )
        self.inference = equinox.filter_jit(
            jax.vmap(
                equinox.nn.inference_mode(self.layer),
                axis_name="batch", in_axes=(0, None), out_axes=(0, None),
            )
        )  # fmt: skip

    def train(self, x):
        _, self.state = self.call(x, self.state)

    def stored(self):
        arrays = {"weight": self.layer.weight, "bias": self.layer.bias}
        if self.mode == "batch":
            arrays["counter"] = self.state.get(self.layer.batch_counter)
            mean, var = self.state.get(self.layer.batch_state_index)
        else:
            mean, var = self.state.get(self.layer.ema_state_index)
        return {**arrays, "mean": mean, "var": var}

    def infer(self, x):
        return self.inference(x, self.state)[0]


class Ema(Batch):
    mode = "ema"


if __name__ == "__main__":
    record({"batch": Batch, "ema": Ema, "batch, float64": double(Batch)}, "equinox", "jax")
