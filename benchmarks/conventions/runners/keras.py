"""Keras 3 on the backend that KERAS_BACKEND names."""

import keras
import numpy as np

from .recording import Layer, record

# Each of its formats by one backend.
SUFFIXES = {"jax": ".keras", "tensorflow": ".weights.h5", "torch": ".h5"}


class BatchNormalization(Layer):
    channels_last = True
    suffix = SUFFIXES[keras.backend.backend()]
    names = ("gamma", "beta", "moving_mean", "moving_variance")

    def __init__(self, given, rank):
        self.layer = keras.layers.BatchNormalization()
        shape = given.test(rank).shape
        self.model = keras.Sequential([keras.Input((*shape[2:], shape[1])), self.layer])
        self.layer.gamma.assign(given.weight)
        self.layer.beta.assign(given.bias)

    def train(self, x):
        self.layer(x, training=True)

    def array(self, value):
        return keras.ops.convert_to_numpy(value)

    def save(self, path):
        save = self.model.save_weights if ".weights." in path else self.model.save
        save(path)

    def infer(self, x):
        y = keras.ops.convert_to_numpy(self.layer(x, training=False))
        return np.asarray(y)


if __name__ == "__main__":
    backend = keras.backend.backend()
    record({"default": BatchNormalization}, "keras", backend)
