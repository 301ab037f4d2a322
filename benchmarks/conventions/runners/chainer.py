"""Chainer: links.BatchNormalization."""

import chainer

from .recording import Layer, record


class BatchNormalization(Layer):
    suffix = ".npz"

    def __init__(self, given, rank):
        self.layer = chainer.links.BatchNormalization(given.weight.size)
        self.layer.gamma.array[...] = given.weight
        self.layer.beta.array[...] = given.bias
        self.momentum, self.eps = self.layer.decay, self.layer.eps

    def train(self, x):
        with chainer.using_config("train", True):
            self.layer(x)

    def stored(self):
        arrays = {"gamma": self.layer.gamma.array, "beta": self.layer.beta.array}
        return {**arrays, **{k: getattr(self.layer, k) for k in ("avg_mean", "avg_var", "N")}}

    def save(self, path):
        chainer.serializers.save_npz(path, self.layer)

    def infer(self, x):
        with chainer.using_config("train", False):
            return self.layer(x).array


class Finetune(BatchNormalization):
    """The cumulative average."""

    def train(self, x):
        with chainer.using_config("train", True):
            self.layer(x, finetune=True)


if __name__ == "__main__":
    record({"default": BatchNormalization, "finetune=True": Finetune}, "chainer")
