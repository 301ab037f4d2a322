"""ONNX: the reference evaluator of the onnx package."""

from onnx.reference import ReferenceEvaluator

from .onnx_graphs import DECAY, EPS, NAMES, inference, training
from .recording import Inference, Layer, record


class Training(Layer):
    """Statistics that the graph of training gives are its inputs in the next step."""

    opset = 15
    momentum, eps = DECAY, EPS

    def __init__(self, given, rank):
        self.arrays = [given.weight, given.bias, 0 * given.mean, 0 * given.var + 1]
        self.run = self.runner(training(self.opset))

    def runner(self, model):
        session = ReferenceEvaluator(model)
        return lambda feeds: session.run(None, feeds)

    def train(self, x):
        _, *self.arrays[2:] = self.run({"x": x, **dict(zip(NAMES, self.arrays, strict=True))})

    def stored(self):
        return dict(zip(NAMES, self.arrays, strict=True))

    def infer(self, x):
        return self.runner(inference(self.opset, self.arrays))({"x": x})[0]


class Opset14(Training):
    opset = 14


class Inference15(Inference, Training):
    names = NAMES

    def __init__(self, given, rank):
        self.arrays = [given.weight, given.bias, given.mean, given.var]

    def stored(self):
        return dict(zip(self.names, self.arrays, strict=True))

    def infer(self, x):
        return self.runner(inference(self.opset, self.arrays, self.names))({"x": x})[0]


class Inference9(Inference15):
    opset = 9
    names = ("scale", "B", "mean", "var")


class Inference7(Inference9):
    opset = 7


if __name__ == "__main__":
    record(
        {
            "opset 15": Training, "opset 14": Opset14,
            "opset 15, inference": Inference15, "opset 9, inference": Inference9,
            "opset 7, inference": Inference7,
        },
        "onnx",
    )  # fmt: skip
