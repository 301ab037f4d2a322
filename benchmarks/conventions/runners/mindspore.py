"""MindSpore: nn.BatchNorm1d and 2d."""

import mindspore
from mindspore import Parameter, Tensor, nn

from .recording import Layer, record

mindspore.set_context(mode=mindspore.PYNATIVE_MODE, device_target="CPU")


class BatchNorm(Layer):
    names = ("moving_mean", "moving_variance", "gamma", "beta")
    momentum = 0.9  # the layer keeps 1 - momentum, the weight that its operator takes

    def __init__(self, given, rank):
        self.layer = (nn.BatchNorm2d if rank == 4 else nn.BatchNorm1d)(given.weight.size)
        self.layer.gamma.set_data(Tensor(given.weight))
        self.layer.beta.set_data(Tensor(given.bias))
        assert isinstance(self.layer.gamma, Parameter)

    def train(self, x):
        self.layer.set_train(True)
        self.layer(Tensor(x))

    def array(self, value):
        return value.asnumpy()

    def infer(self, x):
        self.layer.set_train(False)
        return self.layer(Tensor(x)).asnumpy()


if __name__ == "__main__":
    record({"default": BatchNorm}, "mindspore")
