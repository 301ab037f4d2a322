"""tinygrad: nn.BatchNorm."""

from tinygrad import Tensor, nn
from tinygrad.helpers import Context

from .recording import Layer, record


class BatchNorm(Layer):
    suffix = ".safetensors"

    def __init__(self, given, rank):
        self.layer = nn.BatchNorm(given.weight.size)
        self.layer.weight.assign(Tensor(given.weight)).realize()
        self.layer.bias.assign(Tensor(given.bias)).realize()

    def train(self, x):
        with Context(TRAINING=1):
            y = self.layer(Tensor(x))
        bn = self.layer
        y.realize(bn.running_mean, bn.running_var, bn.num_batches_tracked)

    def stored(self):
        return {k: v.numpy() for k, v in nn.state.get_state_dict(self.layer).items()}

    def save(self, path):
        nn.state.safe_save(nn.state.get_state_dict(self.layer), path)

    def infer(self, x):
        with Context(TRAINING=0):
            return self.layer(Tensor(x)).numpy()


if __name__ == "__main__":
    record({"default": BatchNorm}, "tinygrad")
