"""The layer for Keras beside Keras's own, on the backend that KERAS_BACKEND names."""

import os
import tempfile

import keras
import numpy as np
import pytest
from keras import ops

import bnext.keras

BACKEND = keras.backend.backend()
assert os.environ["KERAS_BACKEND"] == BACKEND
NORM = keras.layers.BatchNormalization
TRAINS = BACKEND != "numpy"  # Keras has no gradients there
rng = np.random.default_rng()
keras.utils.set_random_seed(int(rng.integers(2**31)))


def numbers(tensor):
    return np.asarray(ops.convert_to_numpy(ops.cast(tensor, "float32")), np.float64)


def close(actual, expected, tolerance=3e-6):
    expected = np.asarray(expected, np.float64)
    scale = max(np.abs(expected).max(), 1e-3)
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=tolerance * scale)


def pair(shape, **options):
    """bnext's layer and Keras's, with the same weights."""
    ours = bnext.keras.BatchNormalization(**options)
    own = {name: options.pop(name) for name in ("activation", "negative_slope") if name in options}
    theirs = keras.layers.BatchNormalization(**options)
    for layer in (ours, theirs):
        layer.build(shape)
    weights = [rng.uniform(0.5, 1.5, each.shape) for each in ours.get_weights()]
    ours.set_weights(weights)
    theirs.set_weights(weights)
    return ours, theirs, own


def reference(x, weights, axis, eps, moved=None):
    """y in float64, and the statistics as they move with Keras's momentum of 0.99."""
    gamma, beta, mean, var = (np.asarray(each, np.float64) for each in weights)
    x = np.moveaxis(np.asarray(x, np.float64), axis, -1)
    if moved is not None:
        axes = tuple(range(x.ndim - 1))
        moved[:] = 0.99 * mean + 0.01 * x.mean(axes), 0.99 * var + 0.01 * x.var(axes)
        mean, var = x.mean(axes), x.var(axes)
    y = (x - mean) / np.sqrt(var + eps) * gamma + beta
    return np.moveaxis(y, -1, axis)


def values():
    for shape, axis in (((6, 5, 7, 12), -1), ((6, 12, 5, 7), 1), ((9, 12), -1), ((4, 9, 12), 2)):
        for dtype, tolerance in (("float32", 3e-6), ("mixed_bfloat16", 8e-3), ("float16", 3e-3)):
            ours, theirs, _ = pair(shape, axis=axis, dtype=dtype)
            x = rng.normal(size=shape).astype(np.float32) + 3
            x = numbers(ops.cast(x, ours.compute_dtype))  # rounded once, for the reference
            weights, moved = ours.get_weights(), [None, None]
            for training in (True, False):
                given = ops.cast(x, ours.compute_dtype)
                y = ours(given, training=training)
                assert y.dtype == theirs(given, training=training).dtype
                expected = reference(x, weights, axis, 1e-3, moved if training else None)
                close(numbers(y), expected, tolerance)
                if training:
                    for found, right in zip(ours.get_weights()[2:], moved, strict=True):
                        close(found, right, 1e-3 if dtype == "float16" else 3e-6)
                    weights = ours.get_weights()


def integers_and_no_parameters():
    ours, theirs, _ = pair((8, 6), scale=False, center=False)
    x = rng.integers(-5, 5, (8, 6))
    close(numbers(ours(x, training=True)), numbers(theirs(x, training=True)))
    assert len(ours.weights) == 2


def frozen():
    """A layer that is not trainable uses running statistics, as Keras has it."""
    ours, theirs, _ = pair((8, 6))
    x = rng.normal(size=(8, 6)).astype(np.float32)
    ours.trainable = theirs.trainable = False
    before = ours.get_weights()
    close(numbers(ours(x, training=True)), numbers(theirs(x, training=True)))
    for one, other in zip(before, ours.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def gradients_of(layer, arrays, function):
    """Of the sum of function(layer, *arrays) by arrays and trainable weights."""
    if BACKEND == "jax":
        import jax

        def loss(weights, arrays):
            rest = [each.value for each in layer.non_trainable_variables]
            scope = keras.StatelessScope(
                [*zip(layer.trainable_variables, weights, strict=True),
                 *zip(layer.non_trainable_variables, rest, strict=True)]
            )  # fmt: skip
            with scope:
                return function(layer, *arrays).sum()

        weights = [each.value for each in layer.trainable_variables]
        of_weights, of_arrays = jax.jit(jax.grad(loss, (0, 1)))(weights, list(arrays))
        return [numbers(each) for each in (*of_arrays, *of_weights)]
    import torch

    tensors = [torch.tensor(each, requires_grad=True) for each in arrays]
    weights = [each.value for each in layer.trainable_variables]
    loss = function(layer, *tensors).sum()
    return [numbers(each.detach()) for each in torch.autograd.grad(loss, [*tensors, *weights])]


def gradients():
    if not TRAINS:
        return
    for shape, axis in (((6, 5, 7, 12), -1), ((6, 12, 5), 1)):
        for training in (True, False):
            ours, theirs, _ = pair(shape, axis=axis)
            x, dy = rng.normal(size=(2, *shape)).astype(np.float32)

            def function(layer, x, dy=dy, training=training):
                return layer(x, training=training) ** 2 * ops.convert_to_tensor(dy)

            for one, other in zip(
                gradients_of(ours, [x], function), gradients_of(theirs, [x], function), strict=True
            ):
                close(one, other, 2e-5)


def activations_and_residuals():
    names = ("relu", "relu6", "leaky_relu", "silu", "hardswish", "gelu", "gelu_tanh", "sigmoid")
    for name in (*names, "tanh"):
        ours, theirs, own = pair((9, 4, 6), activation=name, negative_slope=0.2)
        x, residual, dy = rng.normal(size=(3, 9, 4, 6)).astype(np.float32)

        def composed(layer, x, residual, own=own, dy=dy):
            z = layer(x, training=True) + ops.convert_to_tensor(residual)
            act = bnext.keras.layer.ACTIVATIONS[own["activation"]]
            return act(z, own["negative_slope"]) * ops.convert_to_tensor(dy)

        def fused(layer, x, residual, dy=dy):
            return layer(x, training=True, residual=residual) * ops.convert_to_tensor(dy)

        results = (each(layer, x, residual) for each, layer in ((fused, ours), (composed, theirs)))
        close(*(numbers(ops.stop_gradient(each)) for each in results), 1e-5)
        if TRAINS:
            for one, other in zip(
                gradients_of(ours, [x, residual], fused),
                gradients_of(theirs, [x, residual], composed), strict=True,
            ):  # fmt: skip
                close(one, other, 3e-5)
        # So does a call with a mask, whichever layer computes it.
        mask = rng.random((9, 4)) < 0.7
        y = ours(x, training=True, mask=mask, residual=residual)
        z = ops.convert_to_tensor(residual) + theirs(x, training=True, mask=mask)
        close(numbers(y), numbers(bnext.keras.layer.ACTIVATIONS[name](z, 0.2)), 1e-5)


def masks():
    """Also the masks of a layer before: statistics are of some values, all are normalized."""
    x, dy = rng.normal(size=(2, 5, 7, 6)).astype(np.float32) + 1
    x[:, 4:] = 0
    masked = keras.layers.Masking()(x)
    some = rng.random((5, 7)) < 0.6
    for given in ({}, {"mask": some}, {"mask": np.ones_like(some)}, {"mask": some & False}):
        ours, theirs, _ = pair((5, 7, 6))
        data = x if given else masked

        def function(layer, x, dy=dy, given=given):
            return layer(x, training=True, **given) ** 2 * ops.convert_to_tensor(dy)

        close(*(numbers(layer(data, training=True, **given)) for layer in (ours, theirs)), 1e-5)
        for one, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
            close(one, other)
        if TRAINS and given and given["mask"].any():
            of_ours, of_theirs = (gradients_of(each, [x], function) for each in (ours, theirs))
            for one, other in zip(of_ours, of_theirs, strict=True):
                close(one, other, 3e-5)
        # A mask has no meaning where running statistics are used.
        close(*(numbers(layer(data, training=False, **given)) for layer in (ours, theirs)))


def by_keras_itself():
    """Masks beside other axes, renorm, and one value per channel."""
    x = rng.normal(size=(5, 7, 6)).astype(np.float32)
    ours, theirs, _ = pair((5, 7, 7), axis=1)
    square, mask = rng.normal(size=(5, 7, 7)).astype(np.float32), rng.random((5, 7)) < 0.6
    results = [numbers(layer(square, training=True, mask=mask)) for layer in (ours, theirs)]
    np.testing.assert_array_equal(*results)
    for one, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    ours, theirs, _ = pair((5, 7, 6), renorm=True)
    np.testing.assert_array_equal(
        *(numbers(layer(x, training=True)) for layer in (ours, theirs))
    )  # fmt: skip
    ours, theirs, _ = pair((1, 6))
    np.testing.assert_array_equal(
        *(numbers(layer(x[:1, 0], training=True)) for layer in (ours, theirs))
    )  # fmt: skip


def network(norm):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(8, 3, padding="same", use_bias=False)(inputs)
    x = norm()(x)
    x = keras.layers.ReLU()(x)
    inner = keras.Sequential([keras.layers.Conv2D(8, 3, padding="same"), norm()])
    x = keras.layers.Add()([x, inner(x)])
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(4)(x))


def drawn():
    labels = rng.integers(0, 4, 64)
    images = rng.normal(size=(64, 8, 8, 3)).astype(np.float32)
    return images + labels[:, None, None, None] / 2, labels


def training():
    """fit learns what it learns with Keras's own layer."""
    if not TRAINS:
        return
    images, labels = drawn()
    losses = []
    for norm in (bnext.keras.BatchNormalization, keras.layers.BatchNormalization):
        model = network(norm)
        model.compile(
            keras.optimizers.SGD(0.1),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        found = model.fit(images, labels, batch_size=16, epochs=4, shuffle=False, verbose=0)
        losses.append(found.history["loss"])
        assert np.isfinite(model.evaluate(images, labels, verbose=0))
    close(*losses, 1e-3)
    assert losses[0][-1] < 0.9 * losses[0][0]


def files():
    images, _ = drawn()
    norm = bnext.keras.BatchNormalization
    model, plain = network(norm), network(keras.layers.BatchNormalization)
    model.set_weights([rng.uniform(0.5, 1.5, each.shape) for each in model.get_weights()])
    expected = model.predict(images, verbose=0)
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model.keras")
        again = keras.models.load_model(f"{folder}/model.keras")
        assert sum(type(each) is norm for each in again.layers) == 1
        np.testing.assert_array_equal(again.predict(images, verbose=0), expected)
        # Files of weights fit the model with Keras's own layer, and the other way.
        model.save_weights(f"{folder}/of.weights.h5")
        plain.load_weights(f"{folder}/of.weights.h5")
        close(plain.predict(images, verbose=0), expected, 1e-5)
        plain.save_weights(f"{folder}/of.weights.h5")
        other = network(norm)
        other.load_weights(f"{folder}/of.weights.h5")
        np.testing.assert_array_equal(other.predict(images, verbose=0), expected)
    layer = norm(activation="leaky_relu", negative_slope=0.3, epsilon=0.5, axis=1)
    config = keras.saving.serialize_keras_object(layer)
    copy = keras.saving.deserialize_keras_object(config)
    assert type(copy) is norm
    assert copy.get_config() == layer.get_config()
    assert (copy.activation, copy.negative_slope) == ("leaky_relu", 0.3)


def all_layers(model):
    return [layer for layer in model._flatten_layers() if not isinstance(layer, keras.Model)]


def conversion():
    images, _ = drawn()
    plain = network(keras.layers.BatchNormalization)
    plain.set_weights([rng.uniform(0.5, 1.5, each.shape) for each in plain.get_weights()])
    converted = bnext.keras.convert(plain)
    kinds = [type(each) for each in all_layers(converted)]
    assert kinds.count(bnext.keras.BatchNormalization) == 2
    assert NORM not in kinds
    expected = plain.predict(images, verbose=0)
    close(converted.predict(images, verbose=0), expected, 1e-5)
    back = bnext.keras.revert(converted)
    np.testing.assert_array_equal(back.predict(images, verbose=0), expected)
    assert bnext.keras.BatchNormalization not in [type(each) for each in all_layers(back)]
    names = [
        [each.name for each in all_layers(model) if isinstance(each, NORM)]
        for model in (plain, converted, back)
    ]
    assert names[0] == names[1] == names[2]
    fused = bnext.keras.BatchNormalization(activation="relu")
    fused = keras.Sequential([keras.Input((3,)), fused])
    with pytest.raises(ValueError, match="model: expected layers without activation"):
        bnext.keras.revert(fused)


def errors():
    layer = bnext.keras.BatchNormalization
    for name, wrong in (
        ("activation", "swish!"), ("eps", -1.0), ("negative_slope", float("nan")),
        ("synchronized", True),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=name):
            layer(**{"epsilon" if name == "eps" else name: wrong})
    x = np.ones((4, 6), np.float32)
    with pytest.raises((ValueError, TypeError, RuntimeError), match=r"residual|size of tensor"):
        layer(activation="relu")(x, training=True, residual=x[:3])


CHECKS = (
    values, integers_and_no_parameters, frozen, gradients, activations_and_residuals,
    masks, by_keras_itself, training, files, conversion, errors,
)  # fmt: skip

if __name__ == "__main__":
    for check in CHECKS:
        check()
        print(check.__name__, flush=True)
