"""Core ML: the builder's layer, as its specification keeps it. Only macOS can infer."""

import numpy as np
from coremltools.models import datatypes
from coremltools.models.neural_network import NeuralNetworkBuilder

from .recording import Inference, record


class Builder(Inference):
    ranks = (4,)

    def __init__(self, given, rank):
        channels = given.weight.size
        shape = datatypes.Array(channels, *given.test(rank).shape[2:])
        builder = NeuralNetworkBuilder([("x", shape)], [("y", shape)])
        builder.add_batchnorm(
            "bn", channels, given.weight, given.bias, given.mean, given.var, "x", "y"
        )
        (layer,) = builder.spec.neuralNetwork.layers
        self.layer = layer.batchnorm
        self.eps = self.layer.epsilon

    def stored(self):
        names = ("gamma", "beta", "mean", "variance")
        return {n: np.array(getattr(self.layer, n).floatValue, np.float32) for n in names}

    def infer(self, x):
        return None


if __name__ == "__main__":
    record({"builder": Builder}, "coremltools")
