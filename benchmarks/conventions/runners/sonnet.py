"""dm-sonnet: snt.BatchNorm, fused for images with channels last."""

import numpy as np
import sonnet
import tensorflow

from .recording import Layer, record


class ChannelsLast(Layer):
    channels_last = True
    momentum = 0.999
    eps = 1e-5

    def __init__(self, given, rank):
        self.layer = sonnet.BatchNorm(create_scale=True, create_offset=True, **self.options(rank))
        channels = given.weight.size
        shape = [2] * rank
        shape[-1 if self.channels_last else 1] = channels
        self.layer._initialize(tensorflow.ones(shape, self.dtype))
        for variable, values in ((self.layer.scale, given.weight), (self.layer.offset, given.bias)):
            variable.assign(values.reshape(variable.shape))

    def options(self, rank):
        return {"data_format": "NHWC"} if rank == 4 else {}

    def train(self, x):
        self.layer(tensorflow.constant(x), is_training=True)

    def stored(self):
        arrays = {"scale": self.layer.scale.numpy(), "offset": self.layer.offset.numpy()}
        for name in ("moving_mean", "moving_variance"):
            average = getattr(self.layer, name)
            arrays[name + "/hidden"] = average._hidden.numpy()
            arrays[name + "/average"] = average.average.numpy()
            arrays[name + "/counter"] = np.array(average._counter.numpy())
        return arrays

    def infer(self, x):
        y = self.layer(tensorflow.constant(x), is_training=False, test_local_stats=False)
        return y.numpy()


class ChannelsFirst(ChannelsLast):
    channels_last = False
    ranks = (4,)

    def options(self, rank):
        return {"data_format": "NCHW"} if rank == 4 else {"data_format": "NC..."}


class Double(ChannelsFirst):
    ranks = (2, 4)
    dtype = "float64"


if __name__ == "__main__":
    record(
        {
            "channels_last": ChannelsLast, "channels_first": ChannelsFirst,
            "channels_first, float64": Double,
        },
        "dm-sonnet", "tensorflow",
    )  # fmt: skip
