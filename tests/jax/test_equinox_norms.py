"""The layers for Equinox besides batch normalization, beside Equinox' own."""

import numpy as np
import pytest

from ..optional import require_libraries
from .support import close, jax, jnp

require_libraries("equinox")

import equinox as eqx  # noqa: E402

from bnext.jax import equinox as mine  # noqa: E402

LAYERS = {
    "layer": (eqx.nn.LayerNorm, mine.LayerNorm, (12,), {"shape": 12}),
    "layer of two axes": (eqx.nn.LayerNorm, mine.LayerNorm, (5, 7), {"shape": (5, 7), "eps": 1e-3}),
    "layer, no weight": (
        eqx.nn.LayerNorm, mine.LayerNorm, (12,), {"shape": 12, "use_weight": False}
    ),
    "layer of numbers": (eqx.nn.LayerNorm, mine.LayerNorm, (), {"shape": ()}),
    "rms": (eqx.nn.RMSNorm, mine.RMSNorm, (12,), {"shape": 12}),
    "rms, no bias": (eqx.nn.RMSNorm, mine.RMSNorm, (12,), {"shape": 12, "use_bias": False}),
    "rms, a bias alone": (eqx.nn.RMSNorm, mine.RMSNorm, (12,), {"shape": 12, "use_weight": False}),
    "group": (eqx.nn.GroupNorm, mine.GroupNorm, (12, 5, 3), {"groups": 4, "channels": 12}),
    "group of a vector": (eqx.nn.GroupNorm, mine.GroupNorm, (12,), {"groups": 3, "channels": 12}),
    "group without parameters": (
        eqx.nn.GroupNorm, mine.GroupNorm, (12, 5), {"groups": 2, "channelwise_affine": False}
    ),
    "group of one value": (eqx.nn.GroupNorm, mine.GroupNorm, (12,), {"groups": 12, "channels": 12}),
}  # fmt: skip
EQUINOX_ITSELF = ("layer of numbers", "group of one value")


def pair(rng, name):
    theirs, ours, shape, options = LAYERS[name]
    layers = [kind(**options) for kind in (theirs, ours)]
    for which in ("weight", "bias"):
        old = getattr(layers[0], which)
        if old is not None:
            new = jnp.asarray(rng.uniform(0.5, 1.5, old.shape), old.dtype)
            layers = [
                eqx.tree_at(lambda layer, which=which: getattr(layer, which), layer, new)
                for layer in layers
            ]
    return layers, shape


@pytest.mark.parametrize("narrow", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", LAYERS)
def test_equinox_norms_agree(rng, name, narrow):
    layers, shape = pair(rng, name)
    assert isinstance(layers[1], LAYERS[name][0])
    dtype = jnp.bfloat16 if narrow else jnp.float32
    x, dy = (jnp.asarray(rng.normal(size=(9, *shape)) + 1, dtype) for _ in range(2))

    @eqx.filter_jit
    def run(layer, x):
        arrays, rest = eqx.partition(layer, eqx.is_inexact_array)
        y, pull_back = jax.vjp(lambda arrays, x: jax.vmap(eqx.combine(arrays, rest))(x), arrays, x)
        of_arrays, of_x = pull_back(dy)
        return y, of_x, jax.tree.leaves(of_arrays)

    theirs, ours = (run(layer, x) for layer in layers)
    assert theirs[0].dtype == ours[0].dtype == dtype
    close(ours, theirs, 2e-2 if narrow else 1e-5)
    text = jax.jit(lambda x: layers[1](x)).lower(x[0]).as_text()
    assert ("bnext_" in text) == (name not in EQUINOX_ITSELF)


@pytest.mark.parametrize("name", ["layer of two axes", "rms", "group"])
def test_equinox_norms_second_derivatives(rng, name):
    layers, shape = pair(rng, name)
    x, direction = rng.normal(size=(2, 4, *shape)).astype(np.float32)

    def product(layer):
        gradient = jax.grad(lambda x: (jax.vmap(layer)(x) ** 3).sum())
        return jax.jit(lambda x: jax.jvp(gradient, (x,), (direction,))[1])(x)

    close(product(layers[1]), product(layers[0]), 1e-4)


@pytest.mark.parametrize("name", LAYERS)
def test_equinox_norms_pass_a_state_through(rng, name):
    layers, shape = pair(rng, name)
    x = jnp.asarray(rng.normal(size=shape), jnp.float32)
    state = eqx.nn.State(layers[1])
    y, same = layers[1](x, state)
    assert same is state
    close(y, layers[0](x), 1e-5)


def test_equinox_norms_refuse_other_shapes():
    for layer in (mine.LayerNorm(12), mine.RMSNorm(12)):
        with pytest.raises(ValueError, match="must satisfy the invariant"):
            layer(jnp.ones((5, 12)))
    with pytest.raises(ValueError, match=r"^weight: expected shape \(6,\), got \(12,\)"):
        mine.GroupNorm(2, 12)(jnp.ones((6, 4)))
