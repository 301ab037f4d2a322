"""The layer for Flax NNX beside Flax's own."""

import numpy as np
import pytest

from ..optional import require_libraries
from .support import close, jax, jnp

require_libraries("flax")

from flax import nnx  # noqa: E402

from bnext.jax.flax import BatchNorm, convert, revert  # noqa: E402

# Flax takes the variance as E[x^2] - E[x]^2, in float32.
FLAX = 2e-5


def pair(channels=19, **options):
    return nnx.BatchNorm(channels, rngs=nnx.Rngs(0), **options), BatchNorm(
        channels, rngs=nnx.Rngs(0), **options
    )


def step(layer, x, dy, **given):
    """y, gradients of x and of the parameters, and the state afterwards."""
    graph, parameters, others = nnx.split(layer, nnx.Param, ...)

    @jax.jit
    def run(x, parameters, others, given):
        def call(x, parameters):
            merged = nnx.merge(graph, parameters, others, copy=True)
            return merged(x, **given), nnx.split(merged, nnx.Param, ...)[2]

        y, pull_back, others = jax.vjp(call, x, parameters, has_aux=True)
        return y, pull_back(dy.astype(y.dtype)), others

    y, gradients, others = run(x, parameters, others, given)
    nnx.update(layer, others)
    return y, jax.tree.leaves(gradients), jax.tree.leaves(others)


@pytest.mark.parametrize(
    "options",
    [
        {}, {"momentum": 0.7, "epsilon": 1e-3}, {"use_bias": False}, {"use_scale": False},
        {"axis": 1}, {"dtype": jnp.bfloat16}, {"use_fast_variance": False},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_flax_layers_agree(rng, options, dtype):
    layers = pair(**options)
    shape = (8, 19, 5) if options.get("axis") == 1 else (8, 5, 19)
    x, dy = (jnp.asarray(rng.normal(size=shape) + 1, dtype) for _ in range(2))
    narrow = jnp.bfloat16 in (dtype, options.get("dtype"))
    tolerance = 2e-2 if narrow else FLAX  # Flax rounds statistics and sums to bfloat16
    for _ in range(3):
        results = [step(layer, x, dy) for layer in layers]
        assert results[0][0].dtype == results[1][0].dtype
        close(results[1], results[0], tolerance)
    for layer in layers:
        layer.eval()
    flax, mine = (layer(x) for layer in layers)
    assert flax.dtype == mine.dtype
    close(mine, flax, tolerance)


def test_flax_models_are_converted(rng):
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(5, 7, rngs=rngs)
            self.norm = nnx.BatchNorm(7, rngs=rngs)

        def __call__(self, x):
            return self.norm(self.first(x))

    model = Model(nnx.Rngs(0))
    x = rng.normal(size=(16, 5)).astype(np.float32)
    expected = model(x)
    state = nnx.state(model)
    assert convert(model) is model
    assert type(model.norm) is BatchNorm
    assert isinstance(model.norm, nnx.BatchNorm)
    nnx.update(model, state)
    close(model(x), expected, FLAX)
    assert jax.tree.structure(nnx.state(model)) == jax.tree.structure(state)
    revert(model)
    assert type(model.norm) is nnx.BatchNorm
    close(model(x), expected, FLAX)


def test_flax_activation_and_residual(rng):
    x, residual = rng.normal(size=(2, 16, 7)).astype(np.float32)
    plain, fused = (
        nnx.BatchNorm(7, rngs=nnx.Rngs(0)),
        BatchNorm(7, activation="relu", rngs=nnx.Rngs(0)),
    )
    close(fused(x, residual=residual), jax.nn.relu(plain(x) + residual), FLAX)


def test_flax_errors():
    x = jnp.ones((3, 4))
    with pytest.raises(ValueError, match=r"^axis: expected one axis"):
        BatchNorm(4, axis=(0, 1), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"^axis_index_groups: expected None"):
        BatchNorm(4, axis_index_groups=[[0]], rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"^activation: expected "):
        BatchNorm(4, activation="swish", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"^use_running_average: expected True or False"):
        BatchNorm(4, use_running_average=None, rngs=nnx.Rngs(0))(x)
    with pytest.raises(ValueError, match=r"^model: expected layers without activation"):
        revert(nnx.Sequential(BatchNorm(4, activation="relu", rngs=nnx.Rngs(0))))
