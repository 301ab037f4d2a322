"""The layers for Flax NNX besides batch normalization, and its mask, beside Flax's own."""

import numpy as np
import pytest

from ..optional import require_libraries
from .support import close, jax, jnp

require_libraries("flax")

from flax import nnx  # noqa: E402

from bnext.jax import flax as mine  # noqa: E402

from .test_flax import FLAX, step  # noqa: E402

LAYERS = {
    "layer": (nnx.LayerNorm, mine.LayerNorm, (8, 5, 12), {}),
    "layer, no scale": (nnx.LayerNorm, mine.LayerNorm, (8, 5, 12), {"use_scale": False}),
    "layer, no bias": (nnx.LayerNorm, mine.LayerNorm, (8, 12), {"use_bias": False}),
    "layer of two axes": (
        nnx.LayerNorm, mine.LayerNorm, (8, 5, 12), {"reduction_axes": (1, -1), "epsilon": 1e-3}
    ),
    "layer of the others": (nnx.LayerNorm, mine.LayerNorm, (8, 5, 12), {"reduction_axes": (0, 1)}),
    "rms": (nnx.RMSNorm, mine.RMSNorm, (8, 5, 12), {}),
    "rms, no scale": (nnx.RMSNorm, mine.RMSNorm, (8, 12), {"use_scale": False}),
    "group": (nnx.GroupNorm, mine.GroupNorm, (8, 5, 12), {"num_groups": 4}),
    "group of a size": (
        nnx.GroupNorm, mine.GroupNorm, (8, 3, 4, 12), {"num_groups": None, "group_size": 2}
    ),
    "group of vectors": (nnx.GroupNorm, mine.GroupNorm, (8, 12), {"num_groups": 3}),
    "group of axes": (
        nnx.GroupNorm, mine.GroupNorm, (8, 5, 12), {"num_groups": 4, "reduction_axes": (1, 2)}
    ),
    "instance": (nnx.InstanceNorm, mine.InstanceNorm, (8, 5, 12), {}),
    "instance of another axis": (
        nnx.InstanceNorm, mine.InstanceNorm, (8, 12, 5), {"feature_axes": 1}
    ),
    "instance of one value": (nnx.InstanceNorm, mine.InstanceNorm, (8, 12), {}),
}  # fmt: skip
# Where calls are Flax's own.
FLAX_ITSELF = ("layer of the others", "instance of one value")


def pair(name):
    theirs, ours, shape, options = LAYERS[name]
    options = {"use_fast_variance": False, **options}  # Flax's other way loses digits
    layers = [kind(12, rngs=nnx.Rngs(0), **options) for kind in (theirs, ours)]
    return layers, shape


def has_kernel(layer, x):
    return "bnext_" in jax.jit(lambda x: layer(x)).lower(x).as_text()


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16], ids=["", "dtype"])
@pytest.mark.parametrize("narrow", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", LAYERS)
def test_flax_norms_agree(rng, name, narrow, dtype):
    layers, shape = pair(name)
    for layer in layers:
        layer.dtype = dtype
        for parameter in (layer.scale, getattr(layer, "bias", None)):
            if parameter is not None:
                parameter[...] = jnp.linspace(0.5, 1.5, 12)
    x, dy = (
        jnp.asarray(rng.normal(size=shape) + 1, jnp.bfloat16 if narrow else jnp.float32)
        for _ in range(2)
    )
    theirs, ours = (step(layer, x, dy) for layer in layers)
    assert theirs[0].dtype == ours[0].dtype
    close(ours, theirs, 3e-2 if narrow or dtype is not None else FLAX)
    assert has_kernel(layers[1], x) == (name not in FLAX_ITSELF)


@pytest.mark.parametrize("name", ["layer", "rms", "group", "instance"])
def test_flax_norms_second_derivatives(rng, name):
    layers, shape = pair(name)
    x, direction = rng.normal(size=(2, *shape)).astype(np.float32)

    def product(layer):
        gradient = jax.grad(lambda x: (layer(x) ** 3).sum())
        return jax.jit(lambda x: jax.jvp(gradient, (x,), (direction,))[1])(x)

    close(product(layers[1]), product(layers[0]), 2e-4)


@pytest.mark.parametrize("name", ["layer", "rms", "group", "instance"])
def test_flax_norms_with_a_mask_are_flax_own(rng, name):
    layers, shape = pair(name)
    x = rng.normal(size=shape).astype(np.float32)
    mask = np.broadcast_to(rng.random(shape[-1]) < 0.7, shape)
    theirs, ours = (layer(x, mask=mask) for layer in layers)
    np.testing.assert_array_equal(ours, theirs)


class Model(nnx.Module):
    def __init__(self, rngs):
        self.batch = nnx.BatchNorm(12, rngs=rngs)
        self.layer = nnx.LayerNorm(12, rngs=rngs)
        self.rms = nnx.RMSNorm(12, rngs=rngs)
        self.group = nnx.GroupNorm(12, 4, rngs=rngs)
        self.instance = nnx.InstanceNorm(12, rngs=rngs)

    def __call__(self, x):
        return self.instance(self.group(self.rms(self.layer(self.batch(x)) + x)) + x)


NAMES = ("batch", "layer", "rms", "group", "instance")


@pytest.mark.parametrize("norms", ["batch", "rms", ("layer", "group"), "all"], ids=str)
def test_flax_norms_are_converted(rng, norms):
    model = Model(nnx.Rngs(0))
    x = rng.normal(size=(8, 5, 12)).astype(np.float32)
    expected = model(x)
    state = nnx.state(model)
    assert mine.convert(model, norms=norms) is model
    exchanged = NAMES if norms == "all" else {norms} if isinstance(norms, str) else norms
    for name in NAMES:
        theirs, ours = mine.LAYERS[name]
        assert type(getattr(model, name)) is (ours if name in exchanged else theirs)
    nnx.update(model, state)
    close(model(x), expected, 5e-5)
    assert jax.tree.structure(nnx.state(model)) == jax.tree.structure(state)
    mine.revert(model)
    for name in NAMES:
        assert type(getattr(model, name)) is mine.LAYERS[name][0]
    nnx.update(model, state)
    close(model(x), expected, 5e-5)


def test_flax_norms_conversion_refuses_names():
    with pytest.raises(ValueError, match=r"^norms: expected 'all' or names among 'batch', 'layer'"):
        mine.convert(Model(nnx.Rngs(0)), norms="local")
    model = Model(nnx.Rngs(0))
    model.batch.axis = (0, 1)
    with pytest.raises(ValueError, match=r"^axis: expected one axis"):
        mine.convert(model, norms="all")
    assert type(model.layer) is nnx.LayerNorm


# --- the mask of batch normalization --------------------------------------------------------------


MASKS = {
    "beside channels": (lambda draw: draw((8, 5, 1)), {}),
    "of examples": (lambda draw: draw((8, 1, 1)), {}),
    "that lacks axes": (lambda draw: draw((5, 1)), {}),
    "of channels": (lambda draw: draw((8, 5, 12)), {}),
    "of another axis": (lambda draw: draw((8, 1, 12)), {"axis": 1, "num_features": 5}),
}


@pytest.mark.parametrize("kind", MASKS)
def test_flax_masks_agree(rng, kind):
    """Gradients go through positions outside as well, as they do in Flax."""
    make, options = MASKS[kind]
    options = {"num_features": 12, **options}

    def draw(shape):
        mask = rng.random(shape) < 0.6
        mask.reshape(-1, shape[-1])[0] = True
        return mask

    mask = make(draw)
    layers = [
        kind(rngs=nnx.Rngs(0), use_fast_variance=False, **options)
        for kind in (nnx.BatchNorm, mine.BatchNorm)
    ]
    x, dy = rng.normal(size=(2, 8, 5, 12)).astype(np.float32) + 1
    for _ in range(2):
        theirs, ours = (step(layer, x, dy, mask=mask) for layer in layers)
        close(ours, theirs, FLAX)
    for layer in layers:
        layer.eval()
    close(layers[1](x, mask=mask), layers[0](x, mask=mask), FLAX)


def test_flax_masks_second_derivatives(rng):
    mask = rng.random((8, 5, 1)) < 0.6
    x, direction = rng.normal(size=(2, 8, 5, 12)).astype(np.float32)

    def product(kind):
        def loss(x):
            return (kind(12, rngs=nnx.Rngs(0), use_fast_variance=False)(x, mask=mask) ** 3).sum()

        return jax.jit(lambda x: jax.jvp(jax.grad(loss), (x,), (direction,))[1])(x)

    close(product(mine.BatchNorm), product(nnx.BatchNorm), 1e-4)


def test_flax_masks_beside_an_activation_and_a_residual(rng):
    x, residual = rng.normal(size=(2, 16, 7)).astype(np.float32)
    mask = np.arange(16)[:, None] < 9
    plain = nnx.BatchNorm(7, rngs=nnx.Rngs(0))
    fused = mine.BatchNorm(7, activation="relu", rngs=nnx.Rngs(0))
    expected = jax.nn.relu(plain(x, mask=mask) + residual)
    close(fused(x, mask=mask, residual=residual), expected, FLAX)
    with pytest.raises(ValueError, match=r"^mask: expected one that is the same for all channels"):
        fused(x, mask=np.broadcast_to(mask, x.shape))
