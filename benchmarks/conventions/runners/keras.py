"""Keras 3 on the backend that KERAS_BACKEND names."""

import keras
import numpy as np

from .recording import Layer, record


class BatchNormalization(Layer):
    channels_last = True

    def __init__(self, given, rank):
        self.layer = keras.layers.BatchNormalization()
        self.layer.build((None,) * (rank - 1) + (given.weight.size,))
        self.layer.gamma.assign(given.weight)
        self.layer.beta.assign(given.bias)
        self.momentum, self.eps = self.layer.momentum, self.layer.epsilon

    def train(self, x):
        self.layer(x, training=True)

    def stored(self):
        names = ("gamma", "beta", "moving_mean", "moving_variance")
        arrays = {name: getattr(self.layer, name) for name in names}
        return {k: keras.ops.convert_to_numpy(v) for k, v in arrays.items()}

    def infer(self, x):
        y = keras.ops.convert_to_numpy(self.layer(x, training=False))
        return np.asarray(y)


if __name__ == "__main__":
    backend = keras.backend.backend()
    record({"default": BatchNormalization}, "keras", backend)
