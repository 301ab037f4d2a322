"""OpenVINO: ONNX graphs in training mode, and its own BatchNormInference."""

import numpy as np
import openvino
from openvino import opset8

from . import onnx_reference
from .recording import Inference, record


def _compiled(model):
    """Give a function of a model; its numbers stay float32."""
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda feeds: [np.array(v) for v in compiled(list(feeds.values())).values()]


class Imported(onnx_reference.Training):
    """The plugin takes inputs of known ranks, which the graph leaves open."""

    def __init__(self, given, rank):
        self.shapes = {"x": [-1, given.weight.size, *[-1] * (rank - 2)]}
        super().__init__(given, rank)

    def runner(self, model):
        read = openvino.Core().read_model(model.SerializeToString(), b"")
        channels = self.shapes["x"][1:2]
        read.reshape({i: self.shapes.get(i.any_name, channels) for i in read.inputs})
        return _compiled(read)


class BatchNormInference(Inference):
    eps = 1e-5

    def __init__(self, given, rank):
        self.arrays = {
            "gamma": given.weight,
            "beta": given.bias,
            "mean": given.mean,
            "variance": given.var,
        }
        x = opset8.parameter([-1, given.weight.size, *[-1] * (rank - 2)], np.float32, "x")
        constants = [opset8.constant(array) for array in self.arrays.values()]
        node = opset8.batch_norm_inference(x, *constants, self.eps)
        self.run = _compiled(openvino.Model([node], [x], "bn"))

    def stored(self):
        return self.arrays

    def infer(self, x):
        return self.run({"x": x})[0]


if __name__ == "__main__":
    record(
        {"ONNX, opset 15": Imported, "BatchNormInference": BatchNormInference}, "openvino", "onnx"
    )
