"""PaddlePaddle: nn.BatchNorm1D and 2D."""

import paddle

from .recording import Layer, record


class BatchNorm(Layer):
    suffix = ".pdparams"

    def __init__(self, given, rank):
        self.layer = self.make(given.weight.size, rank)
        self.layer.weight.set_value(given.weight)
        self.layer.bias.set_value(given.bias)
        self.momentum, self.eps = self.layer._momentum, self.layer._epsilon

    def make(self, channels, rank):
        return (paddle.nn.BatchNorm2D if rank == 4 else paddle.nn.BatchNorm1D)(channels)

    def train(self, x):
        self.layer.train()
        self.layer(paddle.to_tensor(x))

    def save(self, path):
        paddle.save(self.layer.state_dict(), path)

    def infer(self, x):
        self.layer.eval()
        return self.layer(paddle.to_tensor(x)).numpy()


class ChannelsLast(BatchNorm):
    ranks = (4,)
    channels_last = True

    def make(self, channels, rank):
        return paddle.nn.BatchNorm2D(channels, data_format="NHWC")


if __name__ == "__main__":
    record({"NCHW": BatchNorm, "NHWC": ChannelsLast}, "paddlepaddle")
