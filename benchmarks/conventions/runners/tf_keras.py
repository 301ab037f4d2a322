"""tf-keras, Keras 2: the fused operator for images, and the layer without it."""

import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"

from types import MappingProxyType

import tf_keras

from .recording import Layer, record


class Default(Layer):
    channels_last = True
    suffix = ".keras"
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    options = MappingProxyType({})

    def __init__(self, given, rank):
        self.layer = tf_keras.layers.BatchNormalization(**self.options)
        shape = given.test(rank).shape
        source = tf_keras.Input((*shape[2:], shape[1]))
        self.model = tf_keras.Sequential([source, self.layer])
        self.layer.gamma.assign(given.weight)
        self.layer.beta.assign(given.bias)

    def train(self, x):
        self.layer(x, training=True)

    def save(self, path):
        self.model.save(path)

    def infer(self, x):
        return self.layer(x, training=False).numpy()


class NotFused(Default):
    ranks = (4,)
    options = MappingProxyType({"fused": False})


class Synchronized(Default):
    ranks = (4,)
    options = MappingProxyType({"synchronized": True})


if __name__ == "__main__":
    record(
        {"default": Default, "fused=False": NotFused, "synchronized=True": Synchronized},
        "tf-keras", "tensorflow",
    )  # fmt: skip
