"""MXNet: gluon.nn.BatchNorm. Statistics move in the backward pass."""

from types import MappingProxyType

import mxnet

from .recording import Layer, record


class BatchNorm(Layer):
    options = MappingProxyType({})
    suffix = ".params"
    names = ("gamma", "beta", "running_mean", "running_var")

    def __init__(self, given, rank):
        self.layer = mxnet.gluon.nn.BatchNorm(in_channels=given.weight.size, **self.options)
        self.layer.initialize()
        self.layer.gamma.set_data(mxnet.nd.array(given.weight))
        self.layer.beta.set_data(mxnet.nd.array(given.bias))
        self.momentum, self.eps = self.layer._kwargs["momentum"], self.layer._kwargs["eps"]

    def train(self, x):
        x = mxnet.nd.array(x)
        with mxnet.autograd.record():
            y = self.layer(x).sum()
        y.backward()
        mxnet.nd.waitall()

    def array(self, value):
        return value.data().asnumpy()

    def save(self, path):
        self.layer.save_parameters(path)

    def infer(self, x):
        return self.layer(mxnet.nd.array(x)).asnumpy()


class FixedGamma(BatchNorm):
    """Gamma stays 1, whatever is set: the operator's fix_gamma."""

    options = MappingProxyType({"scale": False})


if __name__ == "__main__":
    record({"default": BatchNorm, "scale=False": FixedGamma}, "mxnet")
