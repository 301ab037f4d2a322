"""The layer for Equinox beside Equinox's own."""

import numpy as np
import pytest

from ..optional import require_libraries
from .support import close, jax, jnp

require_libraries("equinox")

import equinox as eqx  # noqa: E402

from bnext.jax.equinox import BatchNorm  # noqa: E402

OPTIONS = [{}, {"momentum": 0.7, "eps": 1e-3}, {"channelwise_affine": False}]


def call(layer, x, state, **options):
    return jax.vmap(lambda x: layer(x, state, **options), axis_name="batch", out_axes=(0, None))(x)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equinox_layers_agree(rng, options):
    theirs, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(5, "batch", mode="batch", **options)
    mine, my_state = eqx.nn.make_with_state(BatchNorm)(5, "batch", **options)

    @eqx.filter_jit
    def step(layer, state, x):
        def loss(layer, x):
            y, moved = call(layer, x, state)
            return (y**3).sum(), (y, moved)

        arrays, rest = eqx.partition(layer, eqx.is_inexact_array)
        gradient = jax.grad(
            lambda arrays, x: loss(eqx.combine(arrays, rest), x), (0, 1), has_aux=True
        )
        (of_layer, of_x), (y, moved) = gradient(arrays, x)
        return y, moved, of_x, (of_layer.weight, of_layer.bias)

    for _ in range(3):
        x = rng.normal(size=(12, 5, 7)).astype(np.float32) + 1
        y, state, *gradients = step(theirs, state, x)
        my_y, my_state, *my_gradients = step(mine, my_state, x)
        close((my_y, my_gradients), (y, gradients), 1e-5)
        close(my_state.get(mine.batch_state_index), state.get(theirs.batch_state_index), 1e-6)
    y, _ = call(eqx.nn.inference_mode(theirs), x, state)
    my_y, same = call(eqx.nn.inference_mode(mine), x, my_state)
    close(my_y, y, 1e-5)
    assert same.get(mine.batch_counter) == 3


def test_equinox_activation_and_residual(rng):
    x, residual = rng.normal(size=(2, 12, 5, 7)).astype(np.float32)
    plain, state = eqx.nn.make_with_state(BatchNorm)(5, "batch")
    fused, its_state = eqx.nn.make_with_state(BatchNorm)(5, "batch", activation="relu")
    expected = jax.nn.relu(call(plain, x, state)[0] + residual)
    y, _ = jax.vmap(
        lambda x, residual: fused(x, its_state, residual=residual), axis_name="batch",
        out_axes=(0, None),
    )(x, residual)  # fmt: skip
    close(y, expected, 1e-6)


def test_equinox_errors():
    with pytest.raises(ValueError, match=r"^eps: expected "):
        BatchNorm(4, "batch", eps=-1.0)
    with pytest.raises(ValueError, match=r"^activation: expected "):
        BatchNorm(4, "batch", activation="swish")
    layer, state = eqx.nn.make_with_state(BatchNorm)(4, "batch")
    with pytest.raises(ValueError, match=r"^weight: expected shape \(3,\), got \(4,\)"):
        call(layer, jnp.ones((8, 3)), state)
