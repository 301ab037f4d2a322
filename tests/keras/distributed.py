"""A training step of Keras on eight devices of JAX beside the same step on one."""

import keras
import numpy as np

import bnext.keras

rng = np.random.default_rng()
IMAGES = rng.normal(size=(64, 6, 6, 3)).astype(np.float32) + 1
LABELS = rng.integers(0, 4, 64)


def trained():
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            keras.layers.Conv2D(8, 3, use_bias=False),
            bnext.keras.BatchNormalization(activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(4),
        ]
    )
    model.compile(
        keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    found = model.fit(IMAGES, LABELS, batch_size=32, epochs=2, shuffle=False, verbose=0)
    return found.history["loss"], model.get_weights()


expected = trained()
assert len(keras.distribution.list_devices()) == 8
keras.distribution.set_distribution(keras.distribution.DataParallel())
losses, weights = trained()
np.testing.assert_allclose(losses, expected[0], rtol=1e-5)
for one, other in zip(weights, expected[1], strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
